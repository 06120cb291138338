-- Everything that is asked of the ledger in SQL. The words in braces are filled in by store/query.py and
-- store/compact.py, from the column lists in core/records.py and checked names alone; values are parameters.
--
-- Rules of this file, so that the same text runs on DuckDB, ClickHouse and Spark:
-- - integers are summed and cast back to 64 bits; there is no money here;
-- - no alias that names an input column, no `with`, no date functions, no engine's own syntax.

-- name: one_bucket
select {keys} {figures}
from {source}
where minute_unix_s >= {start} and minute_unix_s < {end} {filter}
{groups}
{having}
{order}

-- name: most_called
select day_unix_s, {names}, 1 as is_kept
from (
    select day_unix_s, {names},
        row_number() over (partition by day_unix_s, {within} order by text_calls desc, {text}) as place,
        count(*) over (partition by day_unix_s, {within}) as of_all
    from (
        select {day} as day_unix_s, {named}, sum(calls) as text_calls
        from {source}
        where {only}
        group by {day}, {groups}
    ) as counted
) as placed
where place <= {keep} and of_all > {keep}

-- name: rest_as_other
select {columns}
from (
    select {changed}
    from {source} as shape
    left join (select distinct day_unix_s, {within}, 1 as is_crowded from {kept}) as crowded on {same_within}
    left join {kept} as kept on {same}
) as replaced

-- name: completeness
select metric, sum(value) as metric_value
from {source}
where minute_unix_s >= {start} and minute_unix_s < {end}
group by metric
order by metric

-- name: completeness_by_minute
select minute_unix_s, node, metric, cast(sum(value) as bigint) as metric_value
from {source}
group by minute_unix_s, node, metric
order by minute_unix_s, node, metric

-- name: exchanges
select {columns}
from {source}
where ended_unix_ns >= {start_ns} and ended_unix_ns < {end_ns} {filter}
order by
    downstream_in_wire_bytes + downstream_out_wire_bytes + upstream_in_wire_bytes + upstream_out_wire_bytes desc,
    ended_unix_ns, node, worker_started_unix_ms, worker_pid, line_no, kind
limit {limit}

-- name: rewrite_exchanges
select {columns}
from {source}
order by api, consumer, ended_unix_ns, node, worker_started_unix_ms, worker_pid, line_no, kind

-- name: rewrite_grouped
select {bucket} as bucket_unix_s, {keys}, {figures}
from {source}
group by {groups}
order by api, consumer, bucket_unix_s, {groups}

-- name: control
select cast(coalesce(sum({calls}), 0) as bigint) as control_calls,
    cast(coalesce(sum({wire_bytes}), 0) as bigint) as control_wire_bytes,
    count(*) as control_rows
from {source}
