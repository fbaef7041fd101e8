//! Values of key columns as JSON, the same whatever the session's settings are: another process reads them,
//! and must get the same values.
//!
//! Invariant: no function that somebody else has written is called. Values are made texts by the output
//! functions of their types, which are not looked up by name.

use std::ffi::{CStr, c_char, c_int};
use std::fmt::{Arguments, Write as _};

use pgrx::{FromDatum, pg_sys};

unsafe extern "C" {
    static mut bytea_output: c_int;
}

/// `USE_ISO_DATES`, `DATEORDER_YMD`, `INTSTYLE_POSTGRES`, `BYTEA_OUTPUT_HEX` and the digits that tell any two
/// numbers apart: what `bgworker::pin_settings` sets in the process that reads.
const STYLES: Styles = Styles { dates: 1, order: 0, intervals: 0, digits: 1, bytes: 1 };

/// Settings that output functions follow, as they look them up.
#[derive(Clone, Copy)]
struct Styles {
    dates: c_int,
    order: c_int,
    intervals: c_int,
    digits: c_int,
    bytes: c_int,
}

impl Styles {
    /// Puts them into force; those from before.
    fn exchange(self) -> Styles {
        // SAFETY: plain globals of this process.
        unsafe {
            Styles {
                dates: std::ptr::replace(&raw mut pg_sys::DateStyle, self.dates),
                order: std::ptr::replace(&raw mut pg_sys::DateOrder, self.order),
                intervals: std::ptr::replace(&raw mut pg_sys::IntervalStyle, self.intervals),
                digits: std::ptr::replace(&raw mut pg_sys::extra_float_digits, self.digits),
                bytes: std::ptr::replace(&raw mut bytea_output, self.bytes),
            }
        }
    }
}

/// Runs `work` with [`STYLES`] and UTC in force, and those of the session afterwards, also after an error.
fn with_fixed_styles<T>(work: impl FnOnce() -> T) -> T {
    struct FixedStylesGuard(Styles, *mut pg_sys::pg_tz);
    impl Drop for FixedStylesGuard {
        fn drop(&mut self) {
            self.0.exchange();
            // SAFETY: a plain global of this process.
            unsafe { pg_sys::session_timezone = self.1 };
        }
    }
    // SAFETY: as above; time zones that PostgreSQL has loaded stay. That of UTC is built in.
    let _before = unsafe {
        let utc = pg_sys::pg_tzset(c"GMT".as_ptr());
        let before = FixedStylesGuard(STYLES.exchange(), pg_sys::session_timezone);
        if !utc.is_null() {
            pg_sys::session_timezone = utc;
        }
        before
    };
    work()
}

/// Adds a value of this type to a JSON text: numbers and yes or no as what they are, times as JSON has them,
/// everything else as a string.
///
/// # Safety
///
/// The value is of the type.
pub(super) unsafe fn push(json: &mut String, kind: pg_sys::Oid, value: Option<pg_sys::Datum>) {
    let Some(value) = value else { return json.push_str("null") };
    // SAFETY: the caller's promise.
    unsafe {
        match kind {
            pg_sys::INT8OID => add(json, format_args!("{}", value.value().cast_signed())),
            pg_sys::INT4OID => add(json, format_args!("{}", value.value() as i32)),
            pg_sys::INT2OID => add(json, format_args!("{}", value.value() as i16)),
            pg_sys::BOOLOID => json.push_str(if value.value() as u8 == 0 { "false" } else { "true" }),
            pg_sys::TEXTOID | pg_sys::VARCHAROID => {
                push_string(json, <&str>::from_datum(value, false).unwrap_or_default());
            }
            pg_sys::UUIDOID => {
                let bytes: [u8; 16] = value.cast_mut_ptr::<[u8; 16]>().read();
                add(json, format_args!("\"{}\"", uuid::Uuid::from_bytes(bytes).as_hyphenated()));
            }
            _ => push_other(json, kind, value),
        }
    }
}

/// # Safety
///
/// As [`push`].
unsafe fn push_other(json: &mut String, kind: pg_sys::Oid, value: pg_sys::Datum) {
    // SAFETY: catalog look-ups, and the output function of the value's own type.
    unsafe {
        let base = pg_sys::getBaseType(kind);
        match base {
            pg_sys::INT8OID
            | pg_sys::INT4OID
            | pg_sys::INT2OID
            | pg_sys::BOOLOID
            | pg_sys::TEXTOID
            | pg_sys::VARCHAROID
            | pg_sys::UUIDOID => push(json, base, Some(value)),
            pg_sys::DATEOID | pg_sys::TIMESTAMPOID | pg_sys::TIMESTAMPTZOID => {
                // The buffer is as long as PostgreSQL's own for these types.
                let mut text: [c_char; 256] = [0; 256];
                with_fixed_styles(|| {
                    pg_sys::JsonEncodeDateTime(text.as_mut_ptr(), value, base, std::ptr::null())
                });
                push_string(json, &CStr::from_ptr(text.as_ptr()).to_string_lossy());
            }
            // These types are written as numbers, because which names they have depends on the search path.
            pg_sys::REGCLASSOID
            | pg_sys::REGTYPEOID
            | pg_sys::REGPROCOID
            | pg_sys::REGPROCEDUREOID
            | pg_sys::REGOPEROID
            | pg_sys::REGOPERATOROID
            | pg_sys::REGROLEOID
            | pg_sys::REGNAMESPACEOID
            | pg_sys::REGCONFIGOID
            | pg_sys::REGDICTIONARYOID
            | pg_sys::REGCOLLATIONOID => add(json, format_args!("\"{}\"", value.value() as u32)),
            _ => {
                let text = with_fixed_styles(|| {
                    let (mut output, mut is_varlena) = (pg_sys::InvalidOid, false);
                    pg_sys::getTypeOutputInfo(kind, &mut output, &mut is_varlena);
                    let text = pg_sys::OidOutputFunctionCall(output, value);
                    CStr::from_ptr(text).to_string_lossy()
                });
                let is_number = matches!(base, pg_sys::FLOAT4OID | pg_sys::FLOAT8OID)
                    && text.trim_start_matches('-').starts_with(|first: char| first.is_ascii_digit());
                if is_number { json.push_str(&text) } else { push_string(json, &text) }
            }
        }
    }
}

fn add(json: &mut String, text: Arguments<'_>) {
    // A string takes everything.
    json.write_fmt(text).unwrap_or_default();
}

fn push_string(json: &mut String, text: &str) {
    json.push('"');
    let mut rest = text;
    while let Some(index) = rest.find(|letter: char| letter == '"' || letter == '\\' || letter < ' ') {
        let (plain, special) = rest.split_at(index);
        json.push_str(plain);
        let letter = special.as_bytes()[0];
        match letter {
            b'"' | b'\\' => add(json, format_args!("\\{}", letter as char)),
            _ => add(json, format_args!("\\u{letter:04x}")),
        }
        rest = &special[1..];
    }
    json.push_str(rest);
    json.push('"');
}
