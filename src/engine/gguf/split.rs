//! Models in several files, as `llama-gguf-split` writes them: `NAME-00001-of-00003.gguf` and so on.
//!
//! The first part has the keys of the model, and all of them have tensors. `split.no` counts the parts from
//! 0, `split.count` is the number of parts, and `split.tensors.count` the number of tensors in all of them.
//! The parts of a model are found by their names, and their contents are checked to belong together.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::cursor::Problem;
use super::map::GgufBytes;
use super::parse::{self, Contents, MAX_TENSORS};
use super::value::Raw;
use super::{FilePart, refused};
use crate::Error;

/// Most parts of a model; each is mapped.
const MAX_PARTS: usize = 256;
/// Keys that are the same in all parts that have them.
const COMMON: [&str; 3] = ["general.architecture", "general.name", "split.tensors.count"];

/// The name of a part, parsed.
struct Name {
    /// The path up to the number.
    prefix: Vec<u8>,
    /// Number of the part, from 1 on.
    number: usize,
    count: usize,
}

impl Name {
    fn of(path: &Path) -> Option<Name> {
        let rest = path.as_os_str().as_bytes().strip_suffix(b".gguf")?;
        let (rest, count) = number_behind(rest, b"-of-")?;
        let (prefix, number) = number_behind(rest, b"-")?;
        ((1..=count).contains(&number)).then(|| Name { prefix: prefix.to_owned(), number, count })
    }

    fn path(&self, number: usize) -> PathBuf {
        let mut path = self.prefix.clone();
        path.extend(format!("-{number:05}-of-{:05}.gguf", self.count).bytes());
        OsString::from_vec(path).into()
    }
}

/// Removes five digits from the end, and `mark` before them.
fn number_behind<'a>(text: &'a [u8], mark: &[u8]) -> Option<(&'a [u8], usize)> {
    let (rest, digits) = text.split_last_chunk::<5>()?;
    let number = digits.iter().try_fold(0, |number, digit| {
        digit.is_ascii_digit().then(|| number * 10 + usize::from(digit - b'0'))
    })?;
    Some((rest.strip_suffix(mark)?, number))
}

/// The files of the model that begins with the file at `path`, by its name; one file for anything but the
/// first of several parts. They may not exist.
pub fn parts(path: &Path) -> Vec<PathBuf> {
    match Name::of(path) {
        Some(name) if name.number == 1 && name.count <= MAX_PARTS => {
            (1..=name.count).map(|number| name.path(number)).collect()
        }
        _ => vec![path.to_owned()],
    }
}

/// The place of a part among all parts, by the keys of its file.
#[derive(PartialEq)]
struct TensorPlace {
    /// Number of the part, from 0 on.
    number: u64,
    count: u64,
}

impl TensorPlace {
    /// None for a file that is not split.
    fn of(contents: &Contents) -> Result<Option<TensorPlace>, Problem> {
        let number = |key: &str| match contents.keys.get(key) {
            None => Ok(None),
            Some(Raw::Integer(value)) => u64::try_from(*value)
                .map(Some)
                .map_err(|_| Problem::Corrupt(format!("key \"{key}\" is {value}, out of range"))),
            Some(other) => {
                Err(Problem::Corrupt(format!("key \"{key}\" is {}, not an integer", other.type_name())))
            }
        };
        match number("split.count")? {
            None | Some(0 | 1) => Ok(None),
            Some(count) => Ok(Some(TensorPlace { number: number("split.no")?.unwrap_or(0), count })),
        }
    }
}

/// Opens the other parts of a model, if its first file says that there are some, and adds their tensors to
/// `contents`.
///
/// # Errors
/// [`Error::ModelFile`] for a part that is missing or cannot be read; [`Error::CorruptModel`] and
/// [`Error::UnsupportedModel`], naming the part, where they do not belong together.
pub(super) fn open_rest(first: FilePart, contents: &mut Contents) -> Result<Vec<FilePart>, Error> {
    let place = match TensorPlace::of(contents) {
        Ok(None) => return Ok(vec![first]),
        Ok(Some(place)) => place,
        Err(problem) => return Err(refused(first.path, problem)),
    };
    let name = match name_of_first(&first.path, &place) {
        Ok(name) => name,
        Err((reason, hint)) => {
            return Err(Error::UnsupportedModel { path: first.path, reason, hint: Some(hint) });
        }
    };
    let mut parts = vec![first];
    for number in 2..=name.count {
        let path = name.path(number);
        let missing = || format!("it is part {number} of {} of the model, and is missing", name.count);
        let bytes = GgufBytes::map(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::reading(&path, io::Error::new(source.kind(), missing())),
            _ => Error::reading(&path, source),
        })?;
        let part = FilePart { path, bytes };
        let added = parse::parse(&part.bytes)
            .and_then(|of_part| add(contents, &parts[0].bytes, of_part, &part.bytes, number, name.count));
        part.check_lost()?;
        match added {
            Ok(()) => parts.push(part),
            Err(problem) => return Err(refused(part.path, problem)),
        }
    }
    let wanted = contents.keys.get("split.tensors.count");
    if wanted.is_some_and(|wanted| *wanted != Raw::Integer(contents.tensors.len() as i128)) {
        let found = contents.tensors.len();
        let reason =
            format!("its parts have {found} tensors, which is not what \"split.tensors.count\" says");
        return Err(refused(parts.swap_remove(0).path, Problem::Corrupt(reason)));
    }
    Ok(parts)
}

/// The name of the first part; the error is a reason and a hint.
fn name_of_first(path: &Path, place: &TensorPlace) -> Result<Name, (String, String)> {
    let name = Name::of(path).filter(|name| name.count as u64 == place.count);
    let rename = |number: u64| format!("…-{number:05}-of-{:05}.gguf", place.count);
    if place.number != 0 {
        let first = match &name {
            Some(name) => format!("\"{}\"", name.path(1).display()),
            None => format!("which is called {}", rename(1)),
        };
        return Err((
            format!("it is part {} of {} of a split model", place.number.saturating_add(1), place.count),
            format!("Open the first part, {first}: the others are found by it."),
        ));
    }
    if place.count > MAX_PARTS as u64 {
        return Err((
            format!("it is split into {} parts, at most {MAX_PARTS} are read", place.count),
            "Merge them: llama-gguf-split --merge.".to_owned(),
        ));
    }
    name.filter(|name| name.number == 1).ok_or_else(|| {
        (
            format!("it is the first of {} parts, and by its name the others cannot be found", place.count),
            format!("Give the parts their names back: {} and so on.", rename(1)),
        )
    })
}

/// Whether two values are equal; strings are compared in the bytes of their files.
fn same(one: &Raw, first: &[u8], other: &Raw, bytes: &[u8]) -> bool {
    match (one, other) {
        (Raw::String(one), Raw::String(other)) => first.get(one.clone()) == bytes.get(other.clone()),
        (Raw::Array { of, bytes: one, .. }, Raw::Array { of: of_other, bytes: other, .. }) => {
            of == of_other && first.get(one.clone()) == bytes.get(other.clone())
        }
        _ => one == other,
    }
}

/// Adds the tensors of a part, whose keys and `bytes` must not contradict those of the first one.
fn add(
    of_first: &mut Contents,
    first: &[u8],
    part: Contents,
    bytes: &[u8],
    number: usize,
    count: usize,
) -> Result<(), Problem> {
    let stranger =
        |why: &str| Problem::Corrupt(format!("it is not part {number} of {count} of this model: {why}"));
    match TensorPlace::of(&part)? {
        None => return Err(stranger("it is not split")),
        Some(place) if place != (TensorPlace { number: number as u64 - 1, count: count as u64 }) => {
            let (number, count) = (place.number.saturating_add(1), place.count);
            return Err(stranger(&format!("it says that it is part {number} of {count}")));
        }
        Some(_) => {}
    }
    if part.version != of_first.version {
        return Err(stranger("it is in another version of GGUF"));
    }
    for key in COMMON {
        if let (Some(one), Some(other)) = (of_first.keys.get(key), part.keys.get(key))
            && !same(one, first, other, bytes)
        {
            return Err(stranger(&format!("key \"{key}\" has another value")));
        }
    }
    // Only the first part's keys are used; other parts may repeat them.
    for (key, value) in &part.keys {
        let of_part = key.starts_with("split.") || key.starts_with("general.");
        let repeated =
            of_first.keys.get(key).is_some_and(|first_value| same(first_value, first, value, bytes));
        if !of_part && !repeated {
            return Err(stranger(&format!("key \"{}\" is not that of the first part", key.escape_debug())));
        }
    }
    if (of_first.tensors.len() + part.tensors.len()) as u64 > MAX_TENSORS {
        return Err(Problem::Corrupt(format!("the parts have more than {MAX_TENSORS} tensors")));
    }
    let before = of_first.tensors.len();
    of_first.tensors.extend(part.tensors.into_iter().map(|mut tensor| {
        tensor.part = number - 1;
        tensor
    }));
    of_first.index(before)
}
