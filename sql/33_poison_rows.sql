-- Protocol: the treatment of a row that stops the others. The queue is a table, and its owner
-- may put triggers, constraints and rules on it, or refer to it from other tables. An error that
-- one of them raises for one row must not end the step for all.
--
-- Each step of the protocol is set-wise, in a block with an exception handler. When it fails,
-- its halves are tried, and their halves, until the poison row is alone: its request fails and
-- says why, or, where that cannot be written either, it is left as it is and set aside for a
-- while. An error about the moment, such as a lock, is no fault of the row's. Deferred
-- constraints are made immediate first: raised at COMMIT, an error would be out of reach.

-- The next ranges of a step that has failed for the first of them: two ends each. None where a
-- step has tried for too long: what is left is the next one's. It never ends before it has found
-- one row: steps that end with nothing done would meet the same rows for ever.
create function steadytext.halves(p_ranges integer[], p_begun timestamptz, p_alone boolean default true)
returns integer[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_middle integer := (p_ranges[1] + p_ranges[2]) / 2;
begin
    if p_ranges[1] = p_ranges[2] and clock_timestamp() > p_begun + interval '2 seconds' then
        return '{}';
    end if;
    -- Until the end of the transaction, which is the step's own: what waits for a lock once may do so for each half.
    if p_alone then
        perform set_config('lock_timeout', '20ms', true);
    end if;
    return case when p_ranges[1] < p_ranges[2]
        then array[p_ranges[1], v_middle, v_middle + 1, p_ranges[2]] else '{}' end || p_ranges[3 :];
end
$$;
comment on function steadytext.halves(integer[], timestamptz, boolean) is
    'Returns the ranges left to try when the first range of a step has failed, as pairs of ends; called by the functions of the protocol';

-- A deferred trigger runs with the rights of the role that is current when it fires, and the protocol runs as the owner of
-- the queue. In the worker's transactions only the queue's own triggers are deferred. A worker elsewhere may have deferred
-- anything in its transaction before it called: there they fire at its COMMIT, as its own.
create function steadytext.make_constraints_immediate()
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    if steadytext.is_own_worker() then
        set constraints all immediate;
    end if;
end
$$;
comment on function steadytext.make_constraints_immediate() is
    'Has deferred constraints of the server''s own worker checked within its step, where their errors are caught; called by the functions of the protocol';

create function steadytext.is_transient(p_code text)
returns boolean
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select left(p_code, 2) in ('40', '53', '57', '58') or p_code in ('55P03', '25006')
$$;
comment on function steadytext.is_transient(text) is
    'Returns whether an SQLSTATE is about the moment: conflicts, locks, cancels, resources, the disk';

create function steadytext.end_poison(
    p_step text, p_id bigint, p_message text, p_hint text, p_code text, p_worker text default null, p_attempt integer default null
)
returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_request_id uuid;
    v_status text;
    v_outcome text := 'refused';
begin
    -- Only the worker that holds a request may end it, whatever the error was.
    if p_worker is not null and not exists (
        select from @extschema@.steadytext_queue as q
        where q.id = p_id and q.attempt = p_attempt and q.worker = p_worker and q.status = 'processing'
    ) then
        return 'lost';
    end if;
    if steadytext.is_transient(p_code) then
        v_outcome := 'locked';
    else
        begin
            with held as materialized (
                select q.id
                from @extschema@.steadytext_queue as q
                where q.id = p_id and q.status in ('pending', 'processing')
                    and (p_worker is null or q.attempt = p_attempt and q.worker = p_worker and q.status = 'processing')
                for no key update skip locked
            )
            update @extschema@.steadytext_queue as q set
                status = 'failed',
                error = left(p_message, 8192) || coalesce(E'\nHINT: ' || left(nullif(p_hint, ''), 8192), ''),
                error_code = p_code,
                run_after = null,
                lease_expires_at = null,
                completed_at = clock_timestamp()
            from held as h
            where q.id = h.id
            returning q.request_id, q.status into v_request_id, v_status;
            if v_status = 'failed' then
                v_outcome := 'failed';
                perform steadytext.announce(array[v_request_id]);
            end if;
        exception when others or assert_failure or query_canceled then
            null;
        end;
    end if;
    perform steadytext.note_row_error(p_step, p_id, q.owner_role::oid, p_code, v_outcome)
    from (select) as one
    left join @extschema@.steadytext_queue as q on q.id = p_id;
    return v_outcome;
end
$$;
comment on function steadytext.end_poison(text, bigint, text, text, text, text, integer) is
    'Fails a request for which a step of the protocol has raised an error; outcome failed, refused (it cannot be written at all), locked (an error about the moment) or lost (p_worker does not hold this attempt). Called by the functions of the protocol';

create function steadytext.end_suppressed(p_step text, p_ids bigint[])
returns table (id bigint, outcome text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select s.id, steadytext.end_poison(p_step, s.id,
        format('A trigger or rule of steadytext_queue kept the request from being %s', p_step), null, '09000')
    from unnest(p_ids) as s(id);
end
$$;
comment on function steadytext.end_suppressed(text, bigint[]) is
    'Fails requests whose update had no effect and raised no error, as end_poison does, with the same outcomes. Called by the functions of the protocol';

-- In memory of this session: what it is about is there again after a restart, and found anew.
create function steadytext.note_row_error(p_step text, p_id bigint, p_owner oid, p_code text, p_outcome text)
returns void
language c volatile
as 'MODULE_PATHNAME', 'note_row_error_wrapper';
comment on function steadytext.note_row_error(text, bigint, oid, text, text) is
    'Tells the server log once, and worker_state(), that a request cannot be written; sets it aside for a while where it was left as it is';

create function steadytext.rows_aside()
returns bigint[]
language c volatile
as 'MODULE_PATHNAME', 'rows_aside_wrapper';
comment on function steadytext.rows_aside() is
    'Returns the requests that this session has set aside for a while, as they cannot be written';

create function steadytext.passed_rows(
    p_priority integer,
    p_owner oid
)
returns table (behind bigint, again_after bigint, again_rows integer)
language c volatile strict rows 1
as 'MODULE_PATHNAME', 'passed_rows_wrapper';
comment on function steadytext.passed_rows(integer, oid) is
    'Returns the id of a user''s requests behind which a claim of this session begins, as those before it were locked, and the stretch of these that it looks at once more';

create function steadytext.note_passed_rows(p_priority integer, p_owner oid, p_until bigint, p_holders bigint[])
returns void
language c volatile strict
as 'MODULE_PATHNAME', 'note_passed_rows_wrapper';
comment on function steadytext.note_passed_rows(integer, oid, bigint, bigint[]) is
    'Remembers that a user''s requests are locked up to this id, and by which transactions';

create function steadytext.note_second_look(p_priority integer, p_owner oid, p_found boolean, p_until bigint)
returns void
language c volatile
as 'MODULE_PATHNAME', 'note_second_look_wrapper';
comment on function steadytext.note_second_look(integer, oid, boolean, bigint) is
    'Remembers the outcome of a second look at locked requests: where some are free again, claims begin with the first one; p_until is the id where it ended, NULL at the end of the stretch';

-- While somebody keeps an old snapshot, claims of the server's own worker do not begin with the first entry of the index each time.
create function steadytext.claim_floors_now()
returns table (priorities integer[], roles oid[], ids bigint[])
language c volatile rows 1
as 'MODULE_PATHNAME', 'claim_floors_now_wrapper';
comment on function steadytext.claim_floors_now() is
    'Returns, for priorities and users in the order of the claim index, an id before which no request of theirs is pending; NULLs where a claim begins with the first entry';

create function steadytext.note_search(p_users integer, p_priority integer, p_role oid)
returns void
language c volatile
as 'MODULE_PATHNAME', 'note_search_wrapper';
comment on function steadytext.note_search(integer, integer, oid) is
    'Remembers the findings of a search that began with the first entry: the number of users, and priority and user of the first request';

create function steadytext.note_floor(p_priority integer, p_role oid, p_id bigint)
returns void
language c volatile
as 'MODULE_PATHNAME', 'note_floor_wrapper';
comment on function steadytext.note_floor(integer, oid, bigint) is
    'Remembers the id of the first pending request of a user and a priority; NULL: there is none behind the floor';

create function steadytext.raw_size(p_value anyelement)
returns bigint
language c immutable strict parallel safe
as 'MODULE_PATHNAME', 'raw_size_wrapper';
comment on function steadytext.raw_size(anyelement) is
    'Returns the uncompressed size of a value of variable length in bytes, without reading the value';

-- Without detoasting: what a claim does not take, it does not read.
create function steadytext.request_bytes(p_prompt text, p_prompts text[], p_params jsonb)
returns bigint
language sql immutable
begin atomic
    select coalesce(steadytext.raw_size(p_prompt), 0::bigint)
        operator(pg_catalog.+) coalesce(steadytext.raw_size(p_prompts), 0::bigint)
        operator(pg_catalog.+) coalesce(steadytext.raw_size(p_params), 0::bigint);
end;
comment on function steadytext.request_bytes(text, text[], jsonb) is
    'Returns the uncompressed size of a request''s texts and parameters in bytes, without reading them';
