//! Writes pickles of protocol 4, which Python reads since 3.4.

/// The pickle of a `str`.
pub fn write_text(text: &str) -> Vec<u8> {
    let mut pickle = vec![0x80, 4];
    push_text(&mut pickle, text);
    pickle.push(b'.');
    pickle
}

/// The pickle of a one-dimensional `numpy.ndarray` of type float32, in the form that numpy 1 and 2 read.
pub fn write_vector(vector: &[f32]) -> Vec<u8> {
    let mut pickle = vec![0x80, 4];
    // _reconstruct(ndarray, (0,), b'b')
    push_global(&mut pickle, "numpy.core.multiarray", "_reconstruct");
    push_global(&mut pickle, "numpy", "ndarray");
    pickle.extend_from_slice(b"K\x00\x85C\x01b\x87R");
    // The state: (1, (length,), dtype('f4', False, True), False, bytes)
    pickle.extend_from_slice(b"(K\x01");
    push_int(&mut pickle, vector.len());
    pickle.push(0x85);
    push_global(&mut pickle, "numpy", "dtype");
    push_text(&mut pickle, "f4");
    pickle.extend_from_slice(b"\x89\x88\x87R");
    // The type's state: (3, '<', None, None, None, -1, -1, 0)
    pickle.extend_from_slice(b"(K\x03");
    push_text(&mut pickle, "<");
    pickle.extend_from_slice(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb");
    pickle.push(0x89);
    let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
    pickle.push(0x8e);
    pickle.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    pickle.extend_from_slice(&bytes);
    pickle.extend_from_slice(b"tb.");
    pickle
}

fn push_text(pickle: &mut Vec<u8>, text: &str) {
    match u8::try_from(text.len()) {
        Ok(length) => pickle.extend_from_slice(&[0x8c, length]),
        Err(_) => {
            pickle.push(0x8d);
            pickle.extend_from_slice(&(text.len() as u64).to_le_bytes());
        }
    }
    pickle.extend_from_slice(text.as_bytes());
}

fn push_global(pickle: &mut Vec<u8>, module: &str, name: &str) {
    push_text(pickle, module);
    push_text(pickle, name);
    pickle.push(0x93);
}

/// Vectors are short enough for a signed integer of four bytes.
fn push_int(pickle: &mut Vec<u8>, number: usize) {
    pickle.push(b'J');
    pickle.extend_from_slice(&i32::try_from(number).unwrap_or(i32::MAX).to_le_bytes());
}
