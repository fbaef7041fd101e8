//! Files with one error each. Files with random errors are made by `tests/gguf_mutants.rs`.

use super::*;

/// A file, piece by piece.
struct Builder {
    bytes: Vec<u8>,
}

impl Builder {
    fn new(version: u32, tensors: u64, keys: u64) -> Self {
        let mut builder = Builder { bytes: b"GGUF".to_vec() };
        builder.u32(version).u64(tensors).u64(keys);
        builder
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes.extend(value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes.extend(value.to_le_bytes());
        self
    }

    fn string(&mut self, text: &str) -> &mut Self {
        self.u64(text.len() as u64);
        self.bytes.extend(text.as_bytes());
        self
    }

    fn tensor(&mut self, name: &str, shape: &[u64], kind: u32, offset: u64) -> &mut Self {
        self.string(name).u32(shape.len() as u32);
        for extent in shape {
            self.u64(*extent);
        }
        self.u32(kind).u64(offset)
    }

    fn data(&mut self, length: usize) -> &mut Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(32) + length, 1);
        self
    }

    fn open(&self) -> Result<Gguf, Error> {
        open(self.bytes.clone())
    }

    /// The reason why the file is refused as corrupt.
    fn corrupt(&self) -> String {
        match self.open() {
            Err(Error::CorruptModel { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    }

    fn unsupported(&self) -> String {
        match self.open() {
            Err(Error::UnsupportedModel { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    }
}

fn open(bytes: Vec<u8>) -> Result<Gguf, Error> {
    Gguf::new("test.gguf".into(), GgufBytes::Static(Vec::leak(bytes)))
}

/// Every type of key, two tensors and one of a type from the future.
fn sample() -> Builder {
    let mut file = Builder::new(3, 3, 9);
    file.string("a.u32").u32(4).u32(7);
    file.string("a.f32").u32(6).u32(1.5f32.to_bits());
    file.string("a.bool").u32(7).bytes.push(1);
    file.string("a.string").u32(8).string("text");
    file.string("a.strings").u32(9).u32(8).u64(3).string("x").string("").string("zwölf");
    file.string("a.i32s").u32(9).u32(5).u64(2).u32(1).u32(u32::MAX);
    file.string("a.f32s").u32(9).u32(6).u64(1).u32(0.5f32.to_bits());
    file.string("a.u64").u32(10).u64(1 << 40);
    file.string("general.alignment").u32(4).u32(32);
    file.tensor("one", &[4, 2], 0, 0).tensor("two", &[32], 8, 32).tensor("new", &[5], 999, 96);
    file.data(128);
    file
}

#[test]
fn a_sound_file_is_read() {
    let gguf = sample().open().unwrap();
    assert_eq!((gguf.version(), gguf.keys().len(), gguf.tensors().len()), (3, 9, 3));
    assert_eq!(gguf.u32("a.u32").unwrap(), 7);
    assert_eq!(gguf.f32("a.f32").unwrap(), 1.5);
    assert!(gguf.bool("a.bool").unwrap());
    assert_eq!(gguf.str("a.string").unwrap(), "text");
    assert_eq!(gguf.strings("a.strings").unwrap().collect::<Vec<_>>(), ["x", "", "zwölf"]);
    assert_eq!(gguf.i32s("a.i32s").unwrap().collect::<Vec<_>>(), [1, -1]);
    assert_eq!(gguf.f32s("a.f32s").unwrap().collect::<Vec<_>>(), [0.5]);
    assert_eq!(gguf.opt_str("no.such.key").unwrap(), None);
    let one = gguf.tensor("one").unwrap();
    assert_eq!((one.shape, one.kind, one.data.len()), ([4, 2].as_slice(), GgmlType::F32, 32));
    assert_eq!(gguf.tensor("two").unwrap().data.len(), 34);
    assert!(gguf.opt_tensor("three").unwrap().is_none());
}

#[test]
fn errors_of_access_name_the_key_or_the_tensor() {
    let gguf = sample().open().unwrap();
    for (error, expected) in [
        (gguf.u32("missing").unwrap_err(), "key \"missing\" is missing"),
        (gguf.u32("a.string").unwrap_err(), "key \"a.string\" is a string, not an integer"),
        (gguf.u32("a.u64").unwrap_err(), "key \"a.u64\" is 1099511627776, out of range"),
        (gguf.str("a.f32").unwrap_err(), "key \"a.f32\" is a float, not a string"),
        (gguf.bool("a.u32").unwrap_err(), "key \"a.u32\" is an integer, not a bool"),
        (gguf.f32("a.u32").unwrap_err(), "key \"a.u32\" is an integer, not a float"),
        (gguf.strings("a.i32s").unwrap_err(), "key \"a.i32s\" is an array of 2 i32, not an array of strings"),
        (gguf.i32s("a.strings").unwrap_err(), "an array of 3 string, not an array of i32"),
        (gguf.tensor("three").unwrap_err(), "tensor \"three\" is missing"),
        (gguf.tensor("new").unwrap_err(), "tensor \"new\" has the unknown element type 999"),
    ] {
        let message = error.to_string();
        assert!(message.contains(expected) && message.contains("test.gguf"), "{message}");
    }
}

#[test]
fn what_is_not_gguf_is_refused() {
    assert!(matches!(open(vec![]), Err(Error::CorruptModel { .. })));
    assert!(Builder { bytes: b"PK\x03\x04 a zip file".to_vec() }.corrupt().contains("not a GGUF file"));
    assert!(Builder { bytes: b"GGUF".to_vec() }.corrupt().contains("GGUF header"));
    assert!(Builder::new(1, 0, 0).unsupported().contains("version 1"));
    assert!(Builder::new(4, 0, 0).corrupt().contains("version 4"));
    assert!(Builder::new(3u32.swap_bytes(), 0, 0).unsupported().contains("big-endian"));
    assert!(Builder::new(2, 0, 0).open().is_ok());
}

#[test]
fn every_truncation_is_refused() {
    let whole = sample().bytes;
    // The last tensor begins here; its type is unknown, and so is its size.
    let needed = whole.len() - (128 - 96);
    for length in 0..needed {
        assert!(matches!(open(whole[..length].to_vec()), Err(Error::CorruptModel { .. })), "{length}");
    }
    assert!(open(whole[..needed].to_vec()).is_ok());
}

#[test]
fn counts_and_lengths_are_held_against_the_file() {
    assert!(Builder::new(3, u64::MAX, 0).corrupt().contains("tensors"));
    assert!(Builder::new(3, 0, u64::MAX).corrupt().contains("keys"));
    assert!(Builder::new(3, 0, 1000).corrupt().contains("more than fit"));
    assert!(Builder::new(3, 1000, 0).corrupt().contains("more than fit"));
    for length in [u64::MAX, 1 << 40, 9] {
        let mut file = Builder::new(3, 0, 1);
        file.string("k").u32(8).u64(length).u64(0);
        assert!(file.corrupt().contains("key \"k\" needs"), "{length}");
        let mut file = Builder::new(3, 0, 1);
        file.string("k").u32(9).u32(5).u64(length).u64(0);
        assert!(file.corrupt().contains("key \"k\" needs"), "{length}");
        let mut file = Builder::new(3, 0, 1);
        file.string("k").u32(9).u32(8).u64(length).u64(0);
        assert!(file.corrupt().contains("strings, more than fit"), "{length}");
    }
    let mut file = Builder::new(3, 0, 1);
    file.string("k").u32(9).u32(8).u64(2).string("x").u64(1 << 50);
    assert!(file.corrupt().contains("element 1 of key \"k\""));
}

#[test]
fn keys_are_checked() {
    let mut file = Builder::new(3, 0, 2);
    file.string("k").u32(4).u32(1).string("k").u32(4).u32(1);
    assert!(file.corrupt().contains("key \"k\" occurs twice"));
    let mut file = Builder::new(3, 0, 1);
    file.string("k").u32(13).u64(0);
    assert!(file.corrupt().contains("key \"k\" has the unknown value type 13"));
    let mut file = Builder::new(3, 0, 1);
    file.string("k").u32(7).bytes.push(2);
    assert!(file.corrupt().contains("key \"k\" is not a valid bool"));
    let mut file = Builder::new(3, 0, 1);
    file.string("k").u32(9).u32(9).u64(1).u64(0);
    assert!(file.unsupported().contains("key \"k\" is an array of arrays"));
    let mut file = Builder::new(3, 0, 1);
    file.string("").u32(4).u32(1);
    assert!(file.corrupt().contains("key number 0"));
    let mut file = Builder::new(3, 0, 1);
    file.string("k\n").u32(4).u32(1);
    assert!(file.corrupt().contains("key number 0 is not text"));
    let mut file = Builder::new(3, 0, 1);
    file.string("k").u32(8).u64(2).bytes.extend([0xff, 0xff]);
    assert!(file.open().unwrap().str("k").unwrap_err().to_string().contains("key \"k\" is not valid UTF-8"));
    for alignment in [0, 1, 4, 24, 33, 1 << 20, u32::MAX] {
        let mut file = Builder::new(3, 0, 1);
        file.string("general.alignment").u32(4).u32(alignment);
        assert!(file.corrupt().contains("general.alignment"), "{alignment}");
    }
    let mut file = Builder::new(3, 0, 1);
    file.string("general.alignment").u32(8).string("32");
    assert!(file.corrupt().contains("general.alignment"));
}

#[test]
fn one_part_of_one_is_a_whole_and_bytes_without_a_name_have_no_other_parts() {
    let split = |count: u16| {
        let mut file = Builder::new(3, 0, 1);
        file.string("split.count").u32(2).bytes.extend(count.to_le_bytes());
        file
    };
    assert!(split(1).open().is_ok());
    assert!(split(3).unsupported().contains("it is the first of 3 parts, and by its name the others"));
    assert!(split(1000).unsupported().contains("split into 1000 parts, at most 256"));
    let mut file = Builder::new(3, 0, 1);
    file.string("split.count").u32(8).string("two");
    assert!(file.corrupt().contains("key \"split.count\" is a string, not an integer"));
    let mut file = Builder::new(3, 0, 1);
    file.string("split.count").u32(5).u32(u32::MAX);
    assert!(file.corrupt().contains("key \"split.count\" is -1, out of range"));
}

#[test]
fn the_names_of_parts_follow_from_the_first_one() {
    let named = |path: &str| -> Vec<String> {
        parts(Path::new(path)).iter().map(|path| path.to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        named("a-b/m-00001-of-00003.gguf"),
        ["a-b/m-00001-of-00003.gguf", "a-b/m-00002-of-00003.gguf", "a-b/m-00003-of-00003.gguf"]
    );
    for single in [
        "m.gguf",
        "m-00002-of-00003.gguf",
        "m-00000-of-00003.gguf",
        "m-0001-of-0003.gguf",
        "m-00001-of-00003.bin",
        "m-00001-of-99999.gguf",
        "m-0000a-of-00003.gguf",
        ".gguf",
        "",
    ] {
        assert_eq!(named(single), [single]);
    }
    assert_eq!(named("m-00001-of-00001.gguf"), ["m-00001-of-00001.gguf"]);
}

#[test]
fn tensors_are_checked() {
    let file = |describe: &dyn Fn(&mut Builder)| {
        let mut file = Builder::new(3, 1, 0);
        describe(&mut file);
        file.data(64);
        file.corrupt()
    };
    assert!(
        file(&|file| {
            file.tensor("t", &[17], 0, 0);
        })
        .contains("tensor \"t\" needs 68 bytes")
    );
    assert!(
        file(&|file| {
            file.tensor("t", &[1], 0, 64);
        })
        .contains("tensor \"t\" needs")
    );
    assert!(
        file(&|file| {
            file.tensor("t", &[1], 0, 4);
        })
        .contains("not a multiple of 32")
    );
    assert!(
        file(&|file| {
            file.tensor("t", &[1], 0, u64::MAX);
        })
        .contains("tensor \"t\"")
    );
    assert!(
        file(&|file| {
            file.tensor("t", &[1], 0, u64::MAX - 31);
        })
        .contains("tensor \"t\"")
    );
    assert!(
        file(&|file| {
            file.tensor("t", &[0], 0, 0);
        })
        .contains("a dimension of 0")
    );
    assert!(
        file(&|file| {
            file.tensor("t", &[], 0, 0);
        })
        .contains("0 dimensions")
    );
    assert!(
        file(&|file| {
            file.tensor("t", &[1; 5], 0, 0);
        })
        .contains("5 dimensions")
    );
    assert!(
        file(&|file| {
            file.tensor("t", &[1 << 32, 1 << 32], 0, 0);
        })
        .contains("impossible shape")
    );
    assert!(
        file(&|file| {
            file.tensor("t", &[u64::MAX], 0, 0);
        })
        .contains("impossible shape")
    );
    assert!(
        file(&|file| {
            file.tensor("t", &[1 << 62], 0, 0);
        })
        .contains("impossible shape")
    );
    assert!(
        file(&|file| {
            file.tensor("t", &[33], 8, 0);
        })
        .contains("Q8_0 needs a multiple of 32")
    );
    assert!(
        file(&|file| {
            file.tensor(&"t".repeat(64), &[1], 0, 0);
        })
        .contains("tensor number 0")
    );
    let mut file = Builder::new(3, 2, 0);
    file.tensor("t", &[1], 0, 0).tensor("t", &[1], 0, 32).data(64);
    assert!(file.corrupt().contains("tensor \"t\" occurs twice"));
    let mut file = Builder::new(3, 2, 0);
    file.tensor("t", &[9], 0, 0).tensor("u", &[1], 0, 32).data(64);
    assert!(file.corrupt().contains("\"t\" and \"u\" overlap"));
}

#[test]
fn files_that_cannot_be_opened() {
    let missing = Gguf::open(Path::new("/nonexistent/model.gguf"));
    assert!(matches!(missing, Err(Error::ModelFile { .. })));
    assert!(matches!(Gguf::open(Path::new("/")), Err(Error::ModelFile { .. })));
    assert!(matches!(Gguf::open(Path::new("/dev/zero")), Err(Error::ModelFile { .. })));
    let empty = tempfile::NamedTempFile::new().unwrap();
    let error = Gguf::open(empty.path()).unwrap_err();
    assert!(error.to_string().contains("the file is empty"), "{error}");
}
