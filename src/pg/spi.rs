//! Queries. Thinner than pgrx's SPI in one respect: the caller says whether the query is read-only, because
//! that decides which snapshot it sees.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::CString;
use std::rc::Rc;

use pgrx::datum::{FromDatum, IntoDatum};
use pgrx::{AnyElement, pg_sys};

use super::error::PgError;
use super::{row_insert, varlena};

/// An argument of a query.
pub(crate) struct Arg {
    oid: pg_sys::Oid,
    datum: Option<pg_sys::Datum>,
}

impl<T: IntoDatum> From<T> for Arg {
    fn from(value: T) -> Self {
        Arg { oid: T::type_oid(), datum: value.into_datum() }
    }
}

impl Arg {
    /// The argument as a parameter of a plan.
    fn parameter(&self) -> pg_sys::ParamExternData {
        pg_sys::ParamExternData {
            value: self.datum.unwrap_or(pg_sys::Datum::from(0)),
            isnull: self.datum.is_none(),
            pflags: pg_sys::PARAM_FLAG_CONST as u16,
            ptype: self.oid,
        }
    }

    /// The jsonb `{}`, which most requests have for parameters: without making a text of it that is parsed
    /// again.
    pub(crate) fn empty_object() -> Self {
        const BYTES: usize = 8;
        const OBJECT_OF_NOTHING: u32 = 0x2000_0000;
        // SAFETY: the memory is as long as the two words, and palloc's is aligned.
        let datum = unsafe {
            let value: *mut u32 = pg_sys::palloc(BYTES).cast();
            pgrx::set_varsize_4b(value.cast(), BYTES as i32);
            value.add(1).write(OBJECT_OF_NOTHING);
            pg_sys::Datum::from(value)
        };
        Arg { oid: pg_sys::JSONBOID, datum: Some(datum) }
    }

    /// A jsonb as it is: not made a text that is parsed again.
    pub(crate) fn jsonb(value: Option<&AnyElement>) -> Self {
        Arg { oid: pg_sys::JSONBOID, datum: value.map(AnyElement::datum) }
    }

    /// A `real[]`. Much faster than by element, which is how pgrx makes arrays.
    pub(crate) fn reals(numbers: &[f32]) -> Self {
        let Ok(count @ 1..) = i32::try_from(numbers.len()) else { return Vec::<f32>::new().into() };
        let header = size_of::<pg_sys::ArrayType>() + 2 * size_of::<i32>();
        let bytes = header + size_of_val(numbers);
        // SAFETY: the memory is as long as header and numbers together, and palloc's is aligned; an array of
        // one dimension has its length and its lower bound behind the fixed part, and without nulls its data
        // behind these.
        let datum = unsafe {
            let array: *mut pg_sys::ArrayType = pg_sys::palloc(bytes).cast();
            pgrx::set_varsize_4b(array.cast(), bytes as i32);
            (*array).ndim = 1;
            (*array).dataoffset = 0;
            (*array).elemtype = pg_sys::FLOAT4OID;
            array.add(1).cast::<[i32; 2]>().write([count, 1]);
            let data = array.cast::<u8>().add(header).cast::<f32>();
            data.copy_from_nonoverlapping(numbers.as_ptr(), numbers.len());
            pg_sys::Datum::from(array)
        };
        Arg { oid: pg_sys::FLOAT4ARRAYOID, datum: Some(datum) }
    }
}

/// One row of a result, valid while the query's closure runs.
pub(crate) struct Row {
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
}

impl Row {
    /// The value of a column, counted from 1; `None` for NULL.
    pub(crate) fn get<T: FromDatum>(&self, column: i32) -> Option<T> {
        let mut is_null = true;
        // SAFETY: tuple and descriptor belong together, and the caller's type is the column's.
        unsafe {
            let datum = pg_sys::SPI_getbinval(self.tuple, self.descriptor, column, &mut is_null);
            T::from_datum(datum, is_null)
        }
    }

    /// The value of a column in its type's text form.
    pub(crate) fn get_text(&self, column: i32) -> Option<String> {
        // SAFETY: as above; the string is copied before SPI's memory goes.
        unsafe {
            let text = pg_sys::SPI_getvalue(self.tuple, self.descriptor, column);
            (!text.is_null()).then(|| std::ffi::CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    }
}

impl Row {
    /// Bytes of a column of variable length as they are before compression, known without fetching them; 0
    /// for NULL.
    pub(crate) fn bytes(&self, column: i32) -> usize {
        let mut is_null = true;
        // SAFETY: as above.
        unsafe {
            let datum = pg_sys::SPI_getbinval(self.tuple, self.descriptor, column, &mut is_null);
            if is_null { 0 } else { varlena::bytes(datum) }
        }
    }

    /// A `text[]`; `Err` with the number of its elements where these are more than `most`: nothing is made of
    /// them then.
    pub(crate) fn texts(&self, column: i32, most: usize) -> Result<Option<Vec<Option<String>>>, usize> {
        let mut is_null = true;
        // SAFETY: as above.
        let texts = unsafe {
            let datum = pg_sys::SPI_getbinval(self.tuple, self.descriptor, column, &mut is_null);
            if is_null {
                return Ok(None);
            }
            varlena::texts(datum, most)?
        };
        Ok(Some(texts.into_iter().map(|text| text.map(str::to_owned)).collect()))
    }
}

impl Row {
    /// The value of a column whose type Rust does not know and that is passed by reference, copied into the
    /// memory that was current before the query.
    pub(crate) fn get_copy(&self, column: i32) -> Option<AnyElement> {
        let mut is_null = true;
        // SAFETY: as above; SPI is connected, and extension types such as vector are of variable length.
        unsafe {
            let datum = pg_sys::SPI_getbinval(self.tuple, self.descriptor, column, &mut is_null);
            if is_null {
                return None;
            }
            let copy = pg_sys::SPI_datumTransfer(datum, false, -1);
            AnyElement::from_polymorphic_datum(copy, false, pg_sys::SPI_gettypeid(self.descriptor, column))
        }
    }
}

/// A result as it is handed back to SQL.
pub(crate) enum SqlValue {
    /// A text.
    Text(String),
    /// A value of another type, in the memory of the function's caller.
    Datum(AnyElement),
}

impl SqlValue {
    /// The text, if it is one.
    pub(crate) fn into_text(self) -> Option<String> {
        match self {
            SqlValue::Text(text) => Some(text),
            SqlValue::Datum(_) => None,
        }
    }

    /// The value, if it is no text.
    pub(crate) fn into_datum(self) -> Option<AnyElement> {
        match self {
            SqlValue::Text(_) => None,
            SqlValue::Datum(value) => Some(value),
        }
    }
}

/// The snapshot that a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The active snapshot; the query must not write.
    ReadOnly,
    /// A new one that sees the effects of the transaction's earlier commands.
    ReadWrite,
}

/// Runs `sql`, and `map` over the rows of its result.
///
/// # Errors
///
/// PostgreSQL's errors are raised, not returned; what is returned is a query that cannot be a C string.
pub(crate) fn query<T>(
    sql: &str,
    args: Vec<Arg>,
    mode: Mode,
    mut map: impl FnMut(&Row) -> T,
) -> Result<Vec<T>, PgError> {
    let sql = CString::new(sql).map_err(|_| PgError::internal("a query contains a zero byte"))?;
    let mut types: Vec<pg_sys::Oid> = args.iter().map(|arg| arg.oid).collect();
    let mut values: Vec<pg_sys::Datum> =
        args.iter().map(|arg| arg.datum.unwrap_or(pg_sys::Datum::from(0))).collect();
    let nulls: Vec<std::ffi::c_char> =
        args.iter().map(|arg| if arg.datum.is_some() { b' ' } else { b'n' } as std::ffi::c_char).collect();
    // SAFETY: SPI is connected and finished in pairs, an error in between is cleaned up by the abort; the
    // three arrays are as long as the argument count and outlive the call.
    unsafe {
        if pg_sys::SPI_connect() != pg_sys::SPI_OK_CONNECT as i32 {
            return Err(PgError::internal("SPI_connect failed"));
        }
        let code = pg_sys::SPI_execute_with_args(
            sql.as_ptr(),
            args.len() as i32,
            types.as_mut_ptr(),
            values.as_mut_ptr(),
            nulls.as_ptr(),
            mode == Mode::ReadOnly,
            0,
        );
        if code < 0 {
            return Err(PgError::internal(format!("SPI_execute_with_args failed with code {code}")));
        }
        let table = pg_sys::SPI_tuptable;
        let mut rows = Vec::new();
        if !table.is_null() {
            let count = pg_sys::SPI_processed as usize;
            rows.reserve_exact(count);
            for index in 0..count {
                let row = Row { tuple: *(*table).vals.add(index), descriptor: (*table).tupdesc };
                rows.push(map(&row));
            }
        }
        pg_sys::SPI_finish();
        Ok(rows)
    }
}

/// As [`query`], for at most one row.
pub(crate) fn query_one<T>(
    sql: &str,
    args: Vec<Arg>,
    mode: Mode,
    map: impl FnMut(&Row) -> T,
) -> Result<Option<T>, PgError> {
    Ok(query(sql, args, mode, map)?.pop())
}

/// A query whose plan is kept for the session, for what is run again and again.
pub(crate) struct SavedPlan(Cell<Option<(pg_sys::Oid, pg_sys::SPIPlanPtr)>>);

impl SavedPlan {
    /// No plan yet.
    pub(crate) const fn new() -> Self {
        SavedPlan(Cell::new(None))
    }

    /// Forgets the plan.
    fn free(&self) {
        if let Some((_, plan)) = self.0.take() {
            // SAFETY: a plan that was kept, and that nothing runs now: it is freed once.
            unsafe { pg_sys::SPI_freeplan(plan) };
        }
    }

    /// Runs the query that `sql` gives, which may write, and `map` over the first row of its result. The plan
    /// is made anew when `extension` is another one than before: then its tables are, too.
    ///
    /// # Errors
    ///
    /// As [`query`].
    pub(crate) fn query_one<T>(
        &self,
        extension: pg_sys::Oid,
        sql: impl FnOnce() -> String,
        args: &[Arg],
        map: impl FnOnce(&Row) -> T,
    ) -> Result<Option<T>, PgError> {
        // SAFETY: the closure gets a plan for these arguments.
        self.with_plan(extension, sql, args, |plan| unsafe { execute(plan, args, map) })
    }

    /// As [`SavedPlan::query_one`], for an INSERT of one row that returns at most one column: much cheaper
    /// where the table is a plain one.
    ///
    /// # Errors
    ///
    /// As [`query`].
    pub(crate) fn insert_one<T: FromDatum>(
        &self,
        extension: pg_sys::Oid,
        sql: impl FnOnce() -> String,
        args: &[Arg],
    ) -> Result<Option<T>, PgError> {
        self.with_plan(extension, sql, args, |plan| {
            let parameters: Vec<_> = args.iter().map(Arg::parameter).collect();
            // SAFETY: SPI is connected, and the plan is one that it keeps for these arguments.
            unsafe {
                match row_insert::insert(plan, &parameters) {
                    Some(returned) => Ok(returned),
                    None => Ok(execute(plan, args, |row| row.get(1))?.flatten()),
                }
            }
        })
    }

    /// Connects SPI for the time of `run`, which gets the plan.
    fn with_plan<T>(
        &self,
        extension: pg_sys::Oid,
        sql: impl FnOnce() -> String,
        args: &[Arg],
        run: impl FnOnce(pg_sys::SPIPlanPtr) -> Result<T, PgError>,
    ) -> Result<T, PgError> {
        // SAFETY: as in `query`; a kept plan lives until it is freed here.
        unsafe {
            if pg_sys::SPI_connect() != pg_sys::SPI_OK_CONNECT as i32 {
                return Err(PgError::internal("SPI_connect failed"));
            }
            let plan = match self.0.get() {
                Some((of, plan)) if of == extension => plan,
                old => {
                    if let Some((_, plan)) = old {
                        self.0.set(None);
                        pg_sys::SPI_freeplan(plan);
                    }
                    let plan = prepare(&sql(), args)?;
                    self.0.set(Some((extension, plan)));
                    plan
                }
            };
            let result = run(plan)?;
            pg_sys::SPI_finish();
            Ok(result)
        }
    }
}

/// Runs a plan that may write, and `map` over the first row of its result.
///
/// # Safety
///
/// SPI is connected, and the plan is one that it keeps for these arguments.
unsafe fn execute<T>(
    plan: pg_sys::SPIPlanPtr,
    args: &[Arg],
    map: impl FnOnce(&Row) -> T,
) -> Result<Option<T>, PgError> {
    let mut values: Vec<pg_sys::Datum> =
        args.iter().map(|arg| arg.datum.unwrap_or(pg_sys::Datum::from(0))).collect();
    let nulls: Vec<std::ffi::c_char> =
        args.iter().map(|arg| if arg.datum.is_some() { b' ' } else { b'n' } as std::ffi::c_char).collect();
    // SAFETY: by the caller.
    unsafe {
        let code = pg_sys::SPI_execute_plan(plan, values.as_mut_ptr(), nulls.as_ptr(), false, 0);
        if code < 0 {
            return Err(PgError::internal(format!("SPI_execute_plan failed with code {code}")));
        }
        let table = pg_sys::SPI_tuptable;
        Ok((!table.is_null() && pg_sys::SPI_processed > 0)
            .then(|| map(&Row { tuple: *(*table).vals, descriptor: (*table).tupdesc })))
    }
}

/// Plans of statements that come again and again as they are, by whose rights they run with.
pub(crate) struct KeptPlans(RefCell<HashMap<(pg_sys::Oid, String), Rc<SavedPlan>>>);

impl KeptPlans {
    /// Most plans that are kept; when there are so many, all are freed and made anew.
    const MOST: usize = 200;

    /// A list without plans.
    pub(crate) fn new() -> Self {
        KeptPlans(RefCell::new(HashMap::new()))
    }

    /// As [`SavedPlan::query_one`], with the plan for this statement and `role`.
    ///
    /// # Errors
    ///
    /// As [`query`].
    pub(crate) fn query_one<T>(
        &self,
        role: pg_sys::Oid,
        sql: &str,
        args: &[Arg],
        map: impl FnOnce(&Row) -> T,
    ) -> Result<Option<T>, PgError> {
        if self.0.borrow().len() >= Self::MOST {
            for plan in self.0.take().into_values() {
                plan.free();
            }
        }
        let plan = Rc::clone(
            self.0.borrow_mut().entry((role, sql.to_owned())).or_insert_with(|| Rc::new(SavedPlan::new())),
        );
        plan.query_one(role, || sql.to_owned(), args, map)
    }
}

/// A plan that outlives the transaction. SPI is connected.
fn prepare(sql: &str, args: &[Arg]) -> Result<pg_sys::SPIPlanPtr, PgError> {
    let sql = CString::new(sql).map_err(|_| PgError::internal("a query contains a zero byte"))?;
    let mut types: Vec<pg_sys::Oid> = args.iter().map(|arg| arg.oid).collect();
    // SAFETY: the types are as many as the arguments; the plan is moved out of SPI's memory.
    unsafe {
        let plan = pg_sys::SPI_prepare(sql.as_ptr(), args.len() as i32, types.as_mut_ptr());
        if plan.is_null() || pg_sys::SPI_keepplan(plan) != 0 {
            return Err(PgError::internal("a query could not be prepared"));
        }
        Ok(plan)
    }
}
