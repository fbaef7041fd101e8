-- Protocol: a worker elsewhere that ends by itself says so, and is not taken for one that has died.

create function steadytext.end_heartbeat(p_daemon_id text)
returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform steadytext.check_worker(p_daemon_id);
    delete from @extschema@.steadytext_daemon_health as h where h.daemon_id = p_daemon_id;
end
$$;
comment on function steadytext.end_heartbeat(text) is
    'Protocol: forgets a worker''s report of itself, because the worker ends';
