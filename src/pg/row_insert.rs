//! `INSERT … VALUES` of one row from a kept plan, without starting the executor.
//!
//! The executor's start and end cost more than all the work between them for a statement that inserts one
//! row: it makes a program that computes the values, though most of them are constants or parameters. Here
//! the values are taken from the plan's target list, and the row goes through the executor's own functions,
//! in the order of its `ExecInsert`: rights, BEFORE ROW triggers, policies, constraints, the table, its
//! indexes. The plan is PostgreSQL's, which makes it anew where anything that it depends on has changed.
//!
//! Whatever is not of this simplest kind (rules, triggers after the row or for the statement, partitions,
//! generated columns, transactions that must not write) is left to the executor: [`insert`] returns `None`.

use pgrx::datum::FromDatum;
use pgrx::{is_a, pg_sys};

use super::kept_checks;

/// Inserts the row of a plan, and returns the column that its RETURNING names: `Some(None)` without one,
/// where that is NULL, or where a trigger has left the row out. `None`: nothing was done, the executor must
/// do it.
///
/// # Safety
///
/// SPI is connected, and the plan is one that it keeps for parameters of these types. The column that is
/// returned is of type `T`, which holds nothing of PostgreSQL's memory.
pub(super) unsafe fn insert<T: FromDatum>(
    plan: pg_sys::SPIPlanPtr,
    args: &[pg_sys::ParamExternData],
) -> Option<Option<T>> {
    // SAFETY: by the caller. The plan is held until the row is there, whose values may lie in it; what an
    // error leaves behind is released with the resource owner and the memory of the failed statement.
    unsafe {
        if pg_sys::XactReadOnly || pg_sys::IsInParallelMode() {
            return None;
        }
        let cached = pg_sys::SPI_plan_get_cached_plan(plan);
        if cached.is_null() {
            return None;
        }
        let owner = pg_sys::CurrentResourceOwner;
        let inserted = OneRow::of((*cached).stmt_list).and_then(|row| row.insert(args));
        pg_sys::ReleaseCachedPlan(cached, owner);
        inserted
    }
}

/// The plan of an INSERT of one row.
struct OneRow<'a> {
    statement: *mut pg_sys::PlannedStmt,
    table: pg_sys::Oid,
    /// A `TargetEntry` for each column of the table.
    values: &'a [*mut pg_sys::TargetEntry],
    /// The `WithCheckOption`s of policies, and none if it is null.
    checks: *mut pg_sys::List,
    /// The column that is returned.
    returned: Option<i16>,
}

impl OneRow<'_> {
    /// Reads the plan's tree; `None` where it is anything else.
    unsafe fn of(statements: *mut pg_sys::List) -> Option<Self> {
        // SAFETY: nodes of a plan, each cast to the type that its tag names.
        unsafe {
            let &[statement] = elements::<pg_sys::PlannedStmt>(statements) else { return None };
            let top = (*statement).planTree;
            let is_simple = (*statement).commandType == pg_sys::CmdType::CMD_INSERT
                && !(*statement).hasModifyingCTE
                && (*statement).subplans.is_null()
                && (*statement).rowMarks.is_null();
            if !is_simple || !is_a(top.cast(), pg_sys::NodeTag::T_ModifyTable) || !(*top).initPlan.is_null() {
                return None;
            }
            let modify: *mut pg_sys::ModifyTable = top.cast();
            let source = (*top).lefttree;
            let inserts = (*modify).operation == pg_sys::CmdType::CMD_INSERT
                && (*modify).onConflictAction == pg_sys::OnConflictAction::ONCONFLICT_NONE
                && is_a(source.cast(), pg_sys::NodeTag::T_Result);
            if !inserts
                || !(*source).lefttree.is_null()
                || !(*source).qual.is_null()
                || !(*source).initPlan.is_null()
                || !(*source.cast::<pg_sys::Result>()).resconstantqual.is_null()
            {
                return None;
            }
            let relations = (*modify).resultRelations;
            if (*relations).length != 1 {
                return None;
            }
            let index = usize::try_from((*(*relations).elements).int_value).ok()?.checked_sub(1)?;
            let range = *elements::<pg_sys::RangeTblEntry>((*statement).rtable).get(index)?;
            Some(Self {
                statement,
                table: (*range).relid,
                values: elements((*source).targetlist),
                checks: first_list((*modify).withCheckOptionLists)?,
                returned: match elements(first_list((*modify).returningLists)?) {
                    [] => None,
                    [entry] => Some(column(*entry)?),
                    _ => return None,
                },
            })
        }
    }

    unsafe fn insert<T: FromDatum>(&self, args: &[pg_sys::ParamExternData]) -> Option<Option<T>> {
        // SAFETY: the plan's locks are held, so that the relation stays as the plan knows it. The executor's
        // functions get what it gives them: a relation with its indexes open, and a slot of its rows.
        unsafe {
            check_rights(self.statement);
            let relation = pg_sys::table_open(self.table, pg_sys::NoLock as pg_sys::LOCKMODE);
            if !self.suits(relation) {
                pg_sys::table_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
                return None;
            }
            let executor = pg_sys::CreateExecutorState();
            let before = pg_sys::MemoryContextSwitchTo((*executor).es_query_cxt);
            (*executor).es_output_cid = pg_sys::GetCurrentCommandId(true);
            (*executor).es_param_list_info = parameters(args);

            let result: *mut pg_sys::ResultRelInfo =
                pg_sys::palloc0(size_of::<pg_sys::ResultRelInfo>()).cast();
            pg_sys::InitResultRelInfo(result, relation, 0, std::ptr::null_mut(), 0);
            if (*(*relation).rd_rel).relhasindex {
                pg_sys::ExecOpenIndices(result, false);
            }
            let slot = pg_sys::table_slot_create(relation, &raw mut (*executor).es_tupleTable);
            self.fill(slot, executor, args);

            let returned = self.store(executor, result, slot).then(|| self.returned_from(slot)).flatten();

            pg_sys::ExecCloseIndices(result);
            pg_sys::ExecResetTupleTable((*executor).es_tupleTable, false);
            pg_sys::MemoryContextSwitchTo(before);
            pg_sys::FreeExecutorState(executor);
            pg_sys::table_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
            // The row is there for the next command, as after each statement of SPI.
            pg_sys::CommandCounterIncrement();
            Some(returned)
        }
    }

    /// Whether the executor would do no more than is done here.
    unsafe fn suits(&self, relation: pg_sys::Relation) -> bool {
        // SAFETY: an open relation and its description.
        unsafe {
            let class = &*(*relation).rd_rel;
            let columns = (*relation).rd_att;
            let constraints = (*columns).constr;
            let triggers = (*relation).trigdesc;
            class.relkind == pg_sys::RELKIND_RELATION as std::ffi::c_char
                && !class.relispartition
                && usize::try_from((*columns).natts) == Ok(self.values.len())
                && (constraints.is_null() || !has_generated_columns(&*constraints))
                && (triggers.is_null()
                    || !((*triggers).trig_insert_after_row
                        || (*triggers).trig_insert_instead_row
                        || (*triggers).trig_insert_before_statement
                        || (*triggers).trig_insert_after_statement
                        || (*triggers).trig_insert_new_table))
        }
    }

    /// Puts the values into the slot.
    unsafe fn fill(
        &self,
        slot: *mut pg_sys::TupleTableSlot,
        executor: *mut pg_sys::EState,
        args: &[pg_sys::ParamExternData],
    ) {
        // SAFETY: the slot has as many columns as there are values; expressions of a plan, evaluated in the
        // memory of this statement.
        unsafe {
            let context = pg_sys::MakePerTupleExprContext(executor);
            for (column, &entry) in self.values.iter().enumerate() {
                let mut is_null = false;
                let value = match value_of((*entry).expr, args) {
                    Some((value, null)) => {
                        is_null = null;
                        value
                    }
                    None => {
                        let state = pg_sys::ExecInitExpr((*entry).expr, std::ptr::null_mut());
                        match (*state).evalfunc {
                            Some(evaluate) => evaluate(state, context, &raw mut is_null),
                            None => unreachable!("an expression that is ready has its function"),
                        }
                    }
                };
                *(*slot).tts_values.add(column) = value;
                *(*slot).tts_isnull.add(column) = is_null;
            }
            pg_sys::ExecStoreVirtualTuple(slot);
        }
    }

    /// Puts the row of the slot into the table and its indexes; false where a trigger has left it out.
    unsafe fn store(
        &self,
        executor: *mut pg_sys::EState,
        result: *mut pg_sys::ResultRelInfo,
        slot: *mut pg_sys::TupleTableSlot,
    ) -> bool {
        // SAFETY: executor, relation and slot belong together.
        unsafe {
            let relation = (*result).ri_RelationDesc;
            let triggers = (*relation).trigdesc;
            if !triggers.is_null()
                && (*triggers).trig_insert_before_row
                && !pg_sys::ExecBRInsertTriggers(executor, result, slot)
            {
                return false;
            }
            (*slot).tts_tableOid = self.table;
            if !self.checks.is_null() {
                let mut conditions = std::ptr::null_mut();
                for &check in elements::<pg_sys::WithCheckOption>(self.checks) {
                    let condition = pg_sys::ExecInitQual((*check).qual.cast(), std::ptr::null_mut());
                    conditions = pg_sys::lappend(conditions, condition.cast());
                }
                (*result).ri_WithCheckOptions = self.checks;
                (*result).ri_WithCheckOptionExprs = conditions;
                pg_sys::ExecWithCheckOptions(pg_sys::WCOKind::WCO_RLS_INSERT_CHECK, result, slot, executor);
            }
            if !(*(*relation).rd_att).constr.is_null() {
                kept_checks::check(result, slot, executor);
            }
            pg_sys::simple_table_tuple_insert(relation, slot);
            if (*result).ri_NumIndices > 0 {
                insert_index_entries(executor, result, slot);
            }
            true
        }
    }

    unsafe fn returned_from<T: FromDatum>(&self, slot: *mut pg_sys::TupleTableSlot) -> Option<T> {
        let column = self.returned?;
        // SAFETY: a slot with a row, and one of its columns, whose type is the caller's.
        unsafe {
            pg_sys::slot_getsomeattrs_int(slot, i32::from(column));
            let index = usize::try_from(column - 1).ok()?;
            T::from_datum(*(*slot).tts_values.add(index), *(*slot).tts_isnull.add(index))
        }
    }
}

fn has_generated_columns(constraints: &pg_sys::TupleConstr) -> bool {
    #[cfg(feature = "pg18")]
    if constraints.has_generated_virtual {
        return true;
    }
    constraints.has_generated_stored
}

/// The value and whether it is NULL, where nothing must be computed for it.
unsafe fn value_of(
    expression: *mut pg_sys::Expr,
    args: &[pg_sys::ParamExternData],
) -> Option<(pg_sys::Datum, bool)> {
    // SAFETY: a node, cast to the type that its tag names.
    unsafe {
        if is_a(expression.cast(), pg_sys::NodeTag::T_Const) {
            let constant: *mut pg_sys::Const = expression.cast();
            return Some(((*constant).constvalue, (*constant).constisnull));
        }
        if is_a(expression.cast(), pg_sys::NodeTag::T_Param) {
            let parameter: *mut pg_sys::Param = expression.cast();
            let index = usize::try_from((*parameter).paramid).ok()?.checked_sub(1)?;
            if (*parameter).paramkind == pg_sys::ParamKind::PARAM_EXTERN {
                return args.get(index).map(|arg| (arg.value, arg.isnull));
            }
        }
        None
    }
}

/// The parameters as expressions look for them.
unsafe fn parameters(args: &[pg_sys::ParamExternData]) -> pg_sys::ParamListInfo {
    // SAFETY: the list has room for as many as it is made for.
    unsafe {
        let list = pg_sys::makeParamList(args.len() as i32);
        (*list).params.as_mut_ptr().copy_from_nonoverlapping(args.as_ptr(), args.len());
        list
    }
}

/// Raises what the executor raises where a right is missing.
unsafe fn check_rights(statement: *mut pg_sys::PlannedStmt) {
    // SAFETY: the lists of a plan.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        pg_sys::ExecCheckRTPerms((*statement).rtable, true);
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        pg_sys::ExecCheckPermissions((*statement).rtable, (*statement).permInfos, true);
    }
}

unsafe fn insert_index_entries(
    executor: *mut pg_sys::EState,
    result: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
) {
    let (conflict, arbiters) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: the row is in the table and the indexes are open. Constraints that are checked later have a
    // trigger after the row.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        pg_sys::ExecInsertIndexTuples(result, slot, executor, false, false, conflict, arbiters);
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        pg_sys::ExecInsertIndexTuples(result, slot, executor, false, false, conflict, arbiters, false);
    }
}

/// The pointers in a list, which may be null: an empty one.
unsafe fn elements<'a, T>(list: *mut pg_sys::List) -> &'a [*mut T] {
    if list.is_null() {
        return &[];
    }
    // SAFETY: cells of a list of pointers hold nothing else.
    unsafe {
        std::slice::from_raw_parts((*list).elements.cast(), usize::try_from((*list).length).unwrap_or(0))
    }
}

/// The list in a list of one for each relation, null where there is none; `None` where there are more.
unsafe fn first_list(lists: *mut pg_sys::List) -> Option<*mut pg_sys::List> {
    // SAFETY: a list of lists.
    match unsafe { elements::<pg_sys::List>(lists) } {
        [] => Some(std::ptr::null_mut()),
        [list] => Some(*list),
        _ => None,
    }
}

/// The column that an entry of RETURNING names; `None` if it is anything else.
unsafe fn column(entry: *mut pg_sys::TargetEntry) -> Option<i16> {
    // SAFETY: a node, cast to the type that its tag names.
    unsafe {
        let expression = (*entry).expr;
        let variable: *mut pg_sys::Var = expression.cast();
        (is_a(expression.cast(), pg_sys::NodeTag::T_Var) && (*variable).varattno > 0)
            .then(|| (*variable).varattno)
    }
}
