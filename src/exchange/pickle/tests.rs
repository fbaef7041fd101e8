//! Pickles as Python and numpy write them, and malformed ones.

use super::*;
use crate::random::Random;

/// The output of numpy 1.26 and 2.4 for `[1.5, -0.25, 3e-5]` in several types, by version, array, protocol.
const NUMPY: &str = include_str!("numpy.tsv");

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
}

fn recorded() -> impl Iterator<Item = (String, Vec<u8>)> {
    NUMPY.lines().map(|line| {
        let (name, hex) = line.rsplit_once('\t').unwrap();
        (name.replace('\t', " "), bytes(hex))
    })
}

#[test]
fn arrays_of_numpy_1_and_2_are_read_in_every_protocol() {
    let mut read_ones = 0;
    for (name, pickle) in recorded() {
        let read = read(&pickle);
        if name.contains("strided") {
            assert_eq!(read, Ok(PickleValue::Vector(vec![0.0, 2.0, 4.0])), "{name}");
        } else if name.contains("2d") {
            assert_eq!(read, Err(Error::Kind("an array of several axes")), "{name}");
        } else if name.contains("i4") {
            assert_eq!(read, Err(Error::Kind("an array of something else than floats")), "{name}");
        } else if name.contains("scalar") {
            assert!(
                matches!(&read, Err(Error::Global { name, .. }) if name.contains("scalar")),
                "{name} {read:?}"
            );
        } else {
            assert_eq!(read, Ok(PickleValue::Vector(vec![1.5, -0.25, 3e-5])), "{name}");
            read_ones += 1;
        }
    }
    assert_eq!(read_ones, 2 * 4 * 4);
}

#[test]
fn texts_and_lists_of_floats_are_read() {
    // pickle.dumps('Zeile\n€', protocol=2), =4, =5
    for hex in [
        "800258090000005a65696c650ae282ac71002e",
        "8004950d000000000000008c095a65696c650ae282ac942e",
        "8005950d000000000000008c095a65696c650ae282ac942e",
    ] {
        assert_eq!(read(&bytes(hex)), Ok(PickleValue::Text("Zeile\n€".into())), "{hex}");
    }
    // pickle.dumps([0.5, -1.0, 2], protocol=2), =5
    for hex in [
        "80025d710028473fe000000000000047bff00000000000004b02652e",
        "80059519000000000000005d9428473fe000000000000047bff00000000000004b02652e",
    ] {
        assert_eq!(read(&bytes(hex)), Ok(PickleValue::Vector(vec![0.5, -1.0, 2.0])), "{hex}");
    }
    // pickle.dumps([0.5], protocol=5), pickle.dumps((0.5, 0.25), protocol=4)
    assert_eq!(
        read(&bytes("8005950d000000000000005d94473fe0000000000000612e")),
        Ok(PickleValue::Vector(vec![0.5]))
    );
    assert_eq!(
        read(&bytes("8004951500000000000000473fe0000000000000473fd000000000000086942e")),
        Ok(PickleValue::Vector(vec![0.5, 0.25]))
    );
}

#[test]
fn a_state_that_is_longer_than_any_of_numpys_is_refused() {
    // dtype('f4') with the state (3, '<', None, …): as often as the pickle likes, so each must be short.
    let with_state = |nones: usize| {
        let mut pickle = b"\x80\x04cnumpy\ndtype\n\x8c\x02f4\x85R(K\x03\x8c\x01<".to_vec();
        pickle.extend(vec![b'N'; nones]);
        pickle.extend(b"tb.");
        read(&pickle)
    };
    assert_eq!(with_state(6), Err(Error::Kind("a type")));
    assert!(matches!(with_state(20), Err(Error::Stack { opcode: "BUILD", .. })), "{:?}", with_state(20));
}

#[test]
fn what_was_written_is_read() {
    for text in ["", "short", &"long ".repeat(100), "ä€😀\n\u{1}"] {
        assert_eq!(read(&write_text(text)), Ok(PickleValue::Text(text.into())));
    }
    for length in [1, 3, 1024, MAX_DIMENSIONS] {
        let vector: Vec<f32> = (0..length).map(|i| i as f32 * 0.1 - 3.0).collect();
        assert_eq!(read(&write_vector(&vector)), Ok(PickleValue::Vector(vector)));
    }
}

#[test]
fn nothing_else_is_read_and_the_error_names_the_instruction() {
    let said = |pickle: &[u8]| read(pickle).unwrap_err().to_string();
    // class X: __reduce__ = lambda self: (os.system, ('true',))
    let evil = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.";
    assert_eq!(
        said(evil),
        "the pickle names posix.system by STACK_GLOBAL, which texts and vectors do not need"
    );
    assert_eq!(
        said(b"\x80\x02cos\nsystem\n."),
        "the pickle names os.system by GLOBAL, which texts and vectors do not need"
    );
    assert!(said(b"cbuiltins\nev\x1bl\n.").contains(r"builtins.ev\u{1b}l"));
    for (pickle, opcode) in [
        (&b"\x80\x04}."[..], "EMPTY_DICT"),
        (b"\x80\x04\x8f.", "EMPTY_SET"),
        (b"\x80\x04NQ.", "BINPERSID"),
        (b"P1\n.", "PERSID"),
        (b"\x80\x04N)\x81.", "NEWOBJ"),
        (b"\x82\x01.", "EXT1"),
        (b"(ios\nsystem\n.", "INST"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"S'text'\n.", "STRING"),
    ] {
        assert!(said(pickle).contains(&format!("instruction {opcode} ")), "{}", said(pickle));
    }
    for (pickle, error) in [
        (&b""[..], Error::Unfinished),
        (b"\x80\x04N", Error::Unfinished),
        (b"\x80\x06N.", Error::Protocol(6)),
        (b"\x80\x04N.N", Error::Trailing { at: 4 }),
        (b"\xffN.", Error::NoOpcode { byte: 0xff, at: 0 }),
        (b"N.", Error::Kind("None")),
        (b"C\x03abc.", Error::Kind("bytes")),
        (b"].", Error::Dimensions(0)),
        (b"]]a.", Error::Kind("a list with something else than numbers")),
        (b"\x8c\x02\xff\xfe.", Error::InvalidText),
        (b"\x8c\x01\0.", Error::InvalidText),
        (b"]G\x7f\xf0\0\0\0\0\0\0a.", Error::NotFinite),
        (b"]G\x7f\xef\xff\xff\xff\xff\xff\xffa.", Error::NotFinite),
        (b"]K\0a.", Error::Zeros),
        (b"\x8c\x05abc.", Error::Truncated { opcode: "SHORT_BINUNICODE", at: 0 }),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\xffabc.", Error::Truncated { opcode: "BINBYTES8", at: 0 }),
        (b"NN.", Error::Stack { opcode: "STOP", at: 2, expected: "a single value" }),
        (b"(N.", Error::Stack { opcode: "STOP", at: 2, expected: "a single value" }),
        (b"t.", Error::Stack { opcode: "TUPLE", at: 0, expected: "as many objects" }),
        (b"N(\x85.", Error::Stack { opcode: "TUPLE1", at: 2, expected: "as many objects" }),
        (b"h\x00.", Error::Stack { opcode: "BINGET", at: 0, expected: "that place in the memo" }),
        (b"N)R.", Error::Stack { opcode: "REDUCE", at: 2, expected: "a function" }),
        (
            b"cnumpy\nndarray\n)R.",
            Error::Stack { opcode: "REDUCE", at: 16, expected: "the arguments of numpy's functions" },
        ),
    ] {
        assert_eq!(read(pickle), Err(error), "{pickle:?}");
    }
}

#[test]
fn a_small_pickle_makes_nothing_large() {
    // An empty place far up in the memo.
    assert_eq!(read(b"Nr\xff\xff\xff\xff."), Err(Error::TooManyObjects(64_000)));
    // Objects, marks and copies without end.
    for part in [&b"N"[..], b"(", b"N\x94", b")"] {
        assert!(matches!(read(&part.repeat(100_000)), Err(Error::TooManyObjects(_))), "{part:?}");
    }
    let mut list = b"]N\x94".to_vec();
    list.extend_from_slice(&b"h\x00a".repeat(100_000));
    assert!(matches!(read(&list), Err(Error::TooManyObjects(_) | Error::Stack { .. })));
    // The same text turned into bytes again and again.
    let mut bytes = b"c_codecs\nencode\n\x94X\x00\x00\x01\x00".to_vec();
    bytes.extend_from_slice(&[b'a'; 65536]);
    bytes.extend_from_slice(b"\x8c\x06latin1\x86\x94");
    bytes.extend_from_slice(&b"h\x00h\x01R".repeat(10_000));
    assert_eq!(read(&bytes), Err(Error::TooMuchData));
    // A list that contains itself.
    assert_eq!(read(b"]\x94h\x00a."), Err(Error::Kind("a list with something else than numbers")));
}

#[test]
fn mutated_pickles_do_no_harm() {
    let mut corpus: Vec<Vec<u8>> = recorded().map(|(_, pickle)| pickle).collect();
    corpus.push(write_text("What does VACUUM do?"));
    corpus.push(write_vector(&[1.0, 2.0]));
    let mut random = Random::new(7);
    let mut read_ones = 0;
    for round in 0..100_000 {
        let mut pickle = corpus[round % corpus.len()].clone();
        random.mutate(&mut pickle);
        if let Ok(PickleValue::Vector(vector)) = read(&pickle) {
            assert!(!vector.is_empty() && vector.iter().all(|number| number.is_finite()));
            read_ones += 1;
        }
    }
    assert!(read_ones > 1_000, "mutations that leave a vector: {read_ones}");
}
