//! Values of variable length whose length or number of elements is looked at before they are read.

use pgrx::{FromDatum, pg_sys};

/// Bytes of a value as they are before compression, known without fetching it.
///
/// # Safety
///
/// It is of a type of variable length.
pub(super) unsafe fn bytes(datum: pg_sys::Datum) -> usize {
    // SAFETY: the caller's promise. PostgreSQL's count of bytes includes a header.
    unsafe { pg_sys::toast_raw_datum_size(datum).saturating_sub(pg_sys::VARHDRSZ) }
}

/// The elements of a `text[]`, which live as long as the value or, where that had to be fetched, the memory
/// that is current; `Err` with their number where these are more than `most`: nothing is made of them then.
///
/// # Safety
///
/// It is a `text[]`.
pub(super) unsafe fn texts<'a>(datum: pg_sys::Datum, most: usize) -> Result<Vec<Option<&'a str>>, usize> {
    // SAFETY: the caller's promise; the head of an array says how many elements it has, and the arrays that
    // come back are as long.
    unsafe {
        let array: *mut pg_sys::ArrayType = pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast();
        let dimensions = array.add(1).cast::<i32>();
        let count = pg_sys::ArrayGetNItems((*array).ndim, dimensions);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count > most {
            return Err(count);
        }
        let (mut elements, mut nulls, mut found) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        pg_sys::deconstruct_array(
            array,
            pg_sys::TEXTOID,
            -1,
            false,
            b'i' as std::ffi::c_char,
            &mut elements,
            &mut nulls,
            &mut found,
        );
        let found = usize::try_from(found).unwrap_or(0);
        Ok((0..found).map(|index| <&str>::from_datum(*elements.add(index), *nulls.add(index))).collect())
    }
}
