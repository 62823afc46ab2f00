"""
The store's tables in PostgreSQL, and the functions that work on them.

One call of a function is one transaction, and one round trip. What
L{twsessions.core.delta.apply} says is restated in C{commit}; a schema that an
earlier release made keeps its own, which gives the same answers more slowly.

Text that comes from outside is kept as C{bytea}, in UTF-8: PostgreSQL's text
has no NUL, and its encoding is the database's. What a session's C{seal} covers
is C{content}: what C{record_send} makes of the row, so that a client that gets
it as it is has one hash to make and one piece of bytes to take apart
(L{record<twsessions.stores._postgres.record>}). C{due} is when a sweep
has to look, never after the deadline: a use moves the deadline but not C{due},
so that no index is touched and the new row goes beside the old one (HOT).

C{format} belongs to the row: one that is not 1 was written by a later release
and is left alone. The version in C{meta} belongs to the schema.
"""

from __future__ import annotations

from typing import Final

__all__ = ["CORRUPT", "SCHEMA", "greeting", "making"]

SCHEMA: Final = 1
"""C{meta.schema}: raised when an older release could do harm."""

CORRUPT: Final = "TW001"
"""SQLSTATE of the warning that something corrupt was put aside; its detail is the key."""

_LOCK: Final = 0x7477536573  # "twSes": taken while the tables are made

_TABLES: Final = """
CREATE TABLE session (
    format int2 NOT NULL DEFAULT 1,
    created float8 NOT NULL,
    touched float8 NOT NULL,
    version int8 NOT NULL,
    uses int8 NOT NULL,
    epoch int8 NOT NULL,
    own_idle bool NOT NULL,
    secure bool NOT NULL,
    due float8,
    idle float8,
    absolute float8,
    key bytea NOT NULL PRIMARY KEY,
    handle bytea NOT NULL,
    seal bytea NOT NULL,
    seed bytea NOT NULL,
    token bytea NOT NULL,
    principal bytea,
    address bytea,
    agent bytea,
    names bytea[] NOT NULL,
    vals bytea[] NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX session_due ON session (due) WHERE due IS NOT NULL;
CREATE INDEX session_principal ON session (principal) WHERE principal IS NOT NULL;
CREATE INDEX session_handle ON session (handle);

-- due: when to hand it out next; NULL: never again.
CREATE TABLE ending (
    id bytea NOT NULL PRIMARY KEY,
    format int2 NOT NULL,
    seal bytea NOT NULL,
    content bytea NOT NULL,
    reason text NOT NULL,
    ended float8 NOT NULL,
    due float8,
    claim bytea,
    attempts int4 NOT NULL DEFAULT 0
);
CREATE INDEX ending_due ON ending (due, ended) WHERE due IS NOT NULL;

CREATE TABLE lease (name bytea NOT NULL PRIMARY KEY, holder bytea NOT NULL, until float8 NOT NULL);
CREATE INDEX lease_until ON lease (until);

CREATE TABLE quarantine (key bytea NOT NULL, content bytea NOT NULL, since float8 NOT NULL);
CREATE TABLE meta (name text NOT NULL PRIMARY KEY, value float8 NOT NULL);

-- A change, as commit() takes it. seed IS NOT NULL: a birth. A NULL in
-- expected_vals: not there. A NULL elsewhere: as it was, except where set_... says.
CREATE TYPE change AS (
    key bytea,
    token bytea,
    new_key bytea,
    names bytea[],
    vals bytea[],
    removed bytea[],
    expected bytea[],
    expected_vals bytea[],
    set_idle bool,
    idle float8,
    own_idle bool,
    set_principal bool,
    principal bytea,
    login bool,
    used_ago float8,
    uses int8,
    reason text,
    seed bytea,
    handle bytea,
    ago float8,
    absolute float8,
    secure bool,
    address bytea,
    agent bytea,
    epoch int8
);
"""

# The clock is that of the moment, not of the transaction: it may have waited.
_HELP: Final = """
CREATE FUNCTION moment(skew float8) RETURNS float8 LANGUAGE sql VOLATILE AS $f$
    SELECT extract(epoch FROM clock_timestamp())::float8 + skew
$f$;

CREATE FUNCTION content(s session) RETURNS bytea LANGUAGE sql STABLE AS $f$
    SELECT record_send(ROW(
        s.created, s.touched, s.version, s.uses, s.epoch, s.own_idle, s.secure, s.key, s.seed,
        s.token, s.idle, s.absolute, s.principal, s.address, s.agent, s.names, s.vals))
$f$;

CREATE FUNCTION seal_of(content bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $f$
    SELECT substr(sha256(content), 1, 8)
$f$;

-- Infinite: NULL.
CREATE FUNCTION deadline(s session) RETURNS float8 LANGUAGE sql IMMUTABLE AS $f$
    SELECT least(s.touched + s.idle, s.created + s.absolute)
$f$;

CREATE FUNCTION put_aside(s session) RETURNS void LANGUAGE plpgsql AS $f$
BEGIN
    INSERT INTO quarantine VALUES (s.key, content(s), moment(0));
    DELETE FROM session WHERE session.key = s.key;
    RAISE WARNING 'a corrupt session was moved to the table quarantine'
        USING ERRCODE = 'TW001', DETAIL = encode(s.key, 'hex');
END
$f$;

-- The row under a key, locked; none if it is corrupt.
CREATE FUNCTION look(k bytea) RETURNS session LANGUAGE plpgsql AS $f$
DECLARE
    s session;
BEGIN
    SELECT * INTO s FROM session WHERE session.key = k FOR UPDATE;
    IF s.format = 1 AND s.seal <> seal_of(content(s)) THEN
        PERFORM put_aside(s);
        RETURN NULL;
    END IF;
    RETURN s;
END
$f$;

-- Wanted for another key by somebody who found it corrupt.
CREATE FUNCTION inspect(keys bytea[]) RETURNS void LANGUAGE sql AS $f$
    SELECT look(k) FROM unnest(keys) k ORDER BY k
$f$;

CREATE FUNCTION is_heard(now float8) RETURNS bool LANGUAGE sql STABLE AS $f$
    SELECT coalesce((SELECT value > now FROM meta WHERE name = 'listening'), false)
$f$;

CREATE FUNCTION keep_end(s session, reason text, ended float8) RETURNS void
LANGUAGE sql AS $f$
    INSERT INTO ending (id, format, seal, content, reason, ended, due)
    SELECT s.handle, 1, seal_of(body), body, reason, ended, ended FROM (SELECT content(s) AS body) b
    ON CONFLICT (id) DO NOTHING
$f$;

-- A notification has room for 8000 bytes.
CREATE FUNCTION tell(keys bytea[]) RETURNS void LANGUAGE sql AS $f$
    SELECT pg_notify(current_schema() || '.ended', string_agg(encode(k, 'hex'), ' '))
    FROM unnest(keys) WITH ORDINALITY AS u (k, n) GROUP BY (n - 1) / 120
$f$;
"""

_COMMIT: Final = """
-- For each change in turn: what is stored now, or why not.
CREATE FUNCTION commit(changes change[], skew float8)
RETURNS TABLE (refusal text, body bytea, now float8) LANGUAGE plpgsql AS $f$
DECLARE
    c change;
    s session;
    other session;
    moves bool;
    place int;
    told bytea[] := '{}';
    keys bytea[] := ARRAY(
        SELECT u.key FROM unnest(changes) u
        UNION ALL SELECT u.new_key FROM unnest(changes) u WHERE u.new_key IS NOT NULL);
    twice bytea[] := ARRAY(SELECT k FROM unnest(keys) k GROUP BY k HAVING count(*) > 1);
    locked bytea[];
    spots tid[];
    places int[];
    done bytea[];
    n int := 0;
    at int := 1;
BEGIN
    -- In one order, whatever theirs is: two batches do not wait for each other.
    -- Where they are is kept: to find each again costs more the more there are.
    SELECT array_agg(l.key), array_agg(l.ctid) INTO locked, spots FROM (
        SELECT session.key, session.ctid FROM session WHERE session.key = ANY (keys)
        ORDER BY session.key FOR UPDATE
    ) l;
    now := moment(skew);  -- after the wait: what fell due meanwhile is gone
    -- Most only use a session and set values: those all at once, which takes
    -- half the time. What does not come out of it is looked at closely below.
    WITH ordinary AS (
        UPDATE session SET
            touched = w.touched, version = w.version, uses = w.uses, epoch = w.epoch,
            own_idle = w.own_idle, idle = w.idle, token = w.token, principal = w.principal,
            names = w.names, vals = w.vals, seal = seal_of(w.body),
            due = least(session.due, w.touched + w.idle, w.created + w.absolute)
        FROM (
            SELECT v.*, record_send(ROW(  -- what content() makes of it
                v.created, v.touched, v.version, v.uses, v.epoch, v.own_idle, v.secure, v.key,
                v.seed, v.token, v.idle, v.absolute, v.principal, v.address, v.agent, v.names,
                v.vals)) AS body
            FROM (
                SELECT
                    u.ordinality AS place, t.ctid AS spot,
                    t.created, t.secure, t.key, t.seed, t.absolute, t.address, t.agent, u.token,
                    greatest(t.touched, now - u.used_ago) AS touched,
                    t.version + 1 AS version,
                    t.uses + u.uses AS uses,
                    t.epoch + u.login::int AS epoch,
                    coalesce(u.own_idle, t.own_idle) AS own_idle,
                    CASE WHEN u.set_idle THEN u.idle ELSE t.idle END AS idle,
                    CASE WHEN u.set_principal THEN u.principal ELSE t.principal END AS principal,
                    CASE WHEN u.names <@ t.names THEN t.names ELSE t.names || ARRAY(
                        SELECT x FROM unnest(u.names) x WHERE x <> ALL (t.names)
                    ) END AS names,
                    CASE
                        WHEN u.names = '{}' THEN t.vals
                        WHEN p IS NOT NULL THEN t.vals[: p - 1] || u.vals || t.vals[p + 1 :]
                        ELSE ARRAY(
                            SELECT coalesce(u.vals[array_position(u.names, x.name)], x.val)
                            FROM (SELECT unnest(t.names) AS name, unnest(t.vals) AS val) x
                        ) || ARRAY(
                            SELECT x.val
                            FROM (SELECT unnest(u.names) AS name, unnest(u.vals) AS val) x
                            WHERE x.name <> ALL (t.names)
                        )
                    END AS vals
                FROM unnest(changes) WITH ORDINALITY u
                JOIN session t ON t.ctid = spots[array_position(locked, u.key)],
                LATERAL (SELECT CASE WHEN cardinality(u.names) = 1
                    THEN array_position(t.names, u.names[1]) END OFFSET 0) l (p)
                WHERE u.seed IS NULL AND u.new_key IS NULL AND u.reason IS NULL
                    AND u.removed = '{}' AND u.expected = '{}' AND u.key <> ALL (twice)
                    AND cardinality(u.names) <= 32
                    AND t.format = 1 AND t.seal = seal_of(content(t)) AND t.token <> u.token
                    AND (now >= deadline(t)) IS NOT TRUE
                OFFSET 0  -- each is computed once
            ) v OFFSET 0
        ) w
        WHERE session.ctid = w.spot
        RETURNING w.place, w.body
    )
    SELECT array_agg(o.place ORDER BY o.place), array_agg(o.body ORDER BY o.place)
    INTO places, done FROM ordinary o;
    FOREACH c IN ARRAY changes LOOP
        n := n + 1;
        IF places[at] = n THEN
            refusal := NULL;
            body := done[at];
            at := at + 1;
            RETURN NEXT;
            CONTINUE;
        END IF;
        moves := c.new_key IS NOT NULL;
        LOOP  -- twice if another process takes the key between look and insert
            refusal := NULL;
            other := NULL;
            IF moves THEN
                other := look(c.new_key);
                IF other.format = 1 AND other.token = c.token THEN
                    body := content(other);  -- this rotation has been done
                    EXIT;
                END IF;
            END IF;
            SELECT * INTO s FROM session WHERE session.key = c.key FOR UPDATE;
            IF s.format = 1 THEN
                body := content(s);
                IF s.seal <> seal_of(body) THEN
                    PERFORM put_aside(s);
                    s := NULL;
                ELSIF s.token = c.token THEN
                    EXIT;  -- the same change again: it has been done
                END IF;
            END IF;
            IF c.seed IS NOT NULL THEN
                IF s.key IS NOT NULL THEN
                    refusal := 'taken';
                    EXIT;
                END IF;
                s.format := 1;
                s.key := c.key;
                s.handle := c.handle;
                s.seed := c.seed;
                s.created := now - c.ago;
                s.touched := s.created;
                s.absolute := c.absolute;
                s.version := 0;
                s.uses := 0;
                s.epoch := c.epoch;
                s.own_idle := false;
                s.secure := c.secure;
                s.address := c.address;
                s.agent := c.agent;
                s.names := '{}';
                s.vals := '{}';
            ELSIF s.key IS NULL OR s.format <> 1 OR now >= deadline(s) THEN
                refusal := 'gone';
                EXIT;
            END IF;
            FOR i IN 1 .. cardinality(c.expected) LOOP
                place := array_position(s.names, c.expected[i]);
                IF s.vals[place] IS DISTINCT FROM c.expected_vals[i] THEN
                    refusal := 'conflict';
                END IF;
            END LOOP;
            EXIT WHEN refusal IS NOT NULL;
            IF other.key IS NOT NULL THEN
                refusal := 'taken';
                EXIT;
            END IF;
            IF s.names = '{}' THEN
                s.names := c.names;
                s.vals := c.vals;
            ELSIF cardinality(c.names) + cardinality(c.removed) > 32 THEN
                -- Each looked up by itself would cost the square, and so would
                -- unpacking s for each.
                place := cardinality(s.names);
                SELECT coalesce(array_agg(m.name ORDER BY m.n), '{}'),
                    coalesce(array_agg(m.val ORDER BY m.n), '{}')
                INTO s.names, s.vals
                FROM (
                    SELECT x.name, min(x.n) AS n, (array_agg(x.val ORDER BY x.n DESC))[1] AS val
                    FROM (
                        SELECT t.* FROM unnest(s.names, s.vals) WITH ORDINALITY t (name, val, n)
                        WHERE t.name NOT IN (SELECT unnest(c.removed))
                        UNION ALL
                        SELECT u.name, u.val, u.n + place
                        FROM unnest(c.names, c.vals) WITH ORDINALITY u (name, val, n)
                    ) x GROUP BY x.name
                ) m;
            ELSE
                FOR i IN 1 .. cardinality(c.removed) LOOP
                    place := array_position(s.names, c.removed[i]);
                    IF place IS NOT NULL THEN
                        s.names := s.names[: place - 1] || s.names[place + 1 :];
                        s.vals := s.vals[: place - 1] || s.vals[place + 1 :];
                    END IF;
                END LOOP;
                FOR i IN 1 .. cardinality(c.names) LOOP
                    place := array_position(s.names, c.names[i]);
                    IF place IS NULL THEN
                        s.names := s.names || c.names[i];
                        s.vals := s.vals || c.vals[i];
                    ELSE
                        s.vals[place] := c.vals[i];
                    END IF;
                END LOOP;
            END IF;
            -- Monotonic: a slow writer never takes time away from a later use.
            s.touched := greatest(s.touched, now - c.used_ago);
            IF c.set_idle THEN
                s.idle := c.idle;
            END IF;
            s.own_idle := coalesce(c.own_idle, s.own_idle);
            IF c.set_principal THEN
                s.principal := c.principal;
            END IF;
            s.epoch := s.epoch + c.login::int;
            s.uses := s.uses + c.uses;
            s.version := s.version + 1;
            s.token := c.token;
            s.key := coalesce(c.new_key, c.key);
            body := content(s);
            IF c.reason IS NOT NULL THEN
                IF c.seed IS NULL THEN
                    DELETE FROM session WHERE session.key = c.key;
                    told := told || c.key;
                END IF;
                IF is_heard(now) THEN
                    PERFORM keep_end(s, c.reason, now);
                END IF;
                EXIT;
            END IF;
            s.seal := seal_of(body);
            IF c.seed IS NULL AND NOT moves THEN
                IF s.due > deadline(s) OR s.due IS NULL THEN
                    s.due := deadline(s);
                END IF;
                UPDATE session SET
                    touched = s.touched, version = s.version, uses = s.uses, epoch = s.epoch,
                    own_idle = s.own_idle, due = s.due, idle = s.idle, seal = s.seal,
                    token = s.token, principal = s.principal, names = s.names, vals = s.vals
                WHERE session.key = c.key;
                EXIT;
            END IF;
            s.due := deadline(s);
            INSERT INTO session VALUES (s.*) ON CONFLICT (key) DO NOTHING;
            IF FOUND THEN
                IF c.seed IS NULL THEN
                    DELETE FROM session WHERE session.key = c.key;
                    told := told || c.key;
                END IF;
                EXIT;
            END IF;
        END LOOP;
        IF refusal IS NOT NULL THEN
            body := NULL;
        END IF;
        RETURN NEXT;
    END LOOP;
    IF told <> '{}' THEN
        PERFORM tell(told);
    END IF;
END
$f$;
"""

# Seconds after which what only a later release can read is looked at again.
_LATER: Final = 3600

_SWEEP: Final = f"""
-- Look at up to `slice` sessions that are due and end up to `most` of them.
CREATE FUNCTION sweep(
    most int, slice int, skew float8, OUT looked int, OUT ended int, OUT wait float8
) LANGUAGE plpgsql AS $f$
DECLARE
    now float8 := moment(skew);
    s session;
    told bytea[] := '{{}}';
BEGIN
    looked := 0;
    ended := 0;
    FOR s IN
        SELECT * FROM (
            SELECT * FROM session WHERE session.due <= now ORDER BY session.due LIMIT slice
            FOR UPDATE SKIP LOCKED
        ) d ORDER BY least(d.touched + d.idle, d.created + d.absolute)
    LOOP
        looked := looked + 1;
        IF s.format <> 1 THEN
            UPDATE session SET due = now + {_LATER} WHERE session.key = s.key;
        ELSIF s.seal <> seal_of(content(s)) THEN
            PERFORM put_aside(s);
        ELSIF ended < most AND deadline(s) <= now THEN
            DELETE FROM session WHERE session.key = s.key;
            IF is_heard(now) THEN
                PERFORM keep_end(s, CASE
                    WHEN s.absolute IS NULL OR s.touched + s.idle < s.created + s.absolute
                    THEN 'idle' ELSE 'absolute' END, deadline(s));
            END IF;
            told := told || s.key;
            ended := ended + 1;
        ELSIF s.due IS DISTINCT FROM deadline(s) THEN
            UPDATE session SET due = deadline(s) WHERE session.key = s.key;
        END IF;
    END LOOP;
    IF told <> '{{}}' THEN
        PERFORM tell(told);
    END IF;
    DELETE FROM lease WHERE until <= now;
    IF NOT is_heard(now) THEN
        DELETE FROM ending WHERE id = ANY (ARRAY(SELECT id FROM ending LIMIT slice));
    END IF;
    wait := (SELECT due FROM session WHERE due IS NOT NULL ORDER BY due LIMIT 1) - now;
    IF looked = 0 AND wait <= 0 THEN
        wait := 0.05;  -- others have locked it: they sweep too, or use it
    END IF;
END
$f$;
"""

_ENDS: Final = f"""
CREATE FUNCTION listen(seconds float8, skew float8) RETURNS void LANGUAGE sql AS $f$
    INSERT INTO meta VALUES ('listening', moment(skew) + seconds)
    ON CONFLICT (name) DO UPDATE SET value = excluded.value
$f$;

CREATE FUNCTION claim(most int, lease float8, claimant bytea, skew float8)
RETURNS TABLE (end_id bytea, body bytea, why text, at float8, tries int, now float8)
LANGUAGE plpgsql AS $f$
DECLARE
    e ending;
BEGIN
    now := moment(skew);
    FOR e IN
        SELECT * FROM ending WHERE ending.due <= now ORDER BY ending.due, ending.ended LIMIT most
        FOR UPDATE SKIP LOCKED
    LOOP
        IF e.format <> 1 THEN
            UPDATE ending SET due = now + {_LATER} WHERE ending.id = e.id;
        ELSIF e.seal <> seal_of(e.content) THEN
            INSERT INTO quarantine VALUES (e.id, e.content, now);
            DELETE FROM ending WHERE ending.id = e.id;
            RAISE WARNING 'the corrupt end of a session was moved to the table quarantine'
                USING ERRCODE = 'TW001', DETAIL = encode(e.id, 'hex');
        ELSE
            UPDATE ending SET claim = claimant, due = now + lease, attempts = e.attempts + 1
            WHERE ending.id = e.id;
            end_id := e.id;
            body := e.content;
            why := e.reason;
            at := e.ended;
            tries := e.attempts + 1;
            RETURN NEXT;
        END IF;
    END LOOP;
END
$f$;

CREATE FUNCTION settle(
    ids bytea[], claims bytea[], retries float8[], are_dead bool[], skew float8
) RETURNS bool[] LANGUAGE plpgsql AS $f$
DECLARE
    now float8 := moment(skew);
    held bool[] := '{{}}';
BEGIN
    FOR i IN 1 .. cardinality(ids) LOOP
        IF retries[i] IS NULL AND NOT are_dead[i] THEN
            DELETE FROM ending WHERE id = ids[i] AND claim = claims[i];
        ELSE
            UPDATE ending
            SET claim = NULL, due = CASE WHEN NOT are_dead[i] THEN now + retries[i] END
            WHERE id = ids[i] AND claim = claims[i];
        END IF;
        held := held || FOUND;
    END LOOP;
    RETURN held;
END
$f$;
"""

_LEASES: Final = """
CREATE FUNCTION acquire(wanted bytea, who bytea, seconds float8, skew float8) RETURNS bool
LANGUAGE plpgsql AS $f$
DECLARE
    now float8 := moment(skew);
BEGIN
    IF EXISTS (SELECT FROM lease WHERE name = wanted AND holder <> who AND until > now) THEN
        RETURN false;
    END IF;
    INSERT INTO lease VALUES (wanted, who, now + seconds)
    ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
    WHERE lease.holder = excluded.holder OR lease.until <= now;
    RETURN FOUND;
END
$f$;
"""

_SESSION = "SELECT s.format, s.seal, content(s), (SELECT moment($1)), s.key FROM session s"

_STATEMENTS: Final = {
    "load(float8, bytea[])": f"{_SESSION} WHERE s.key = ANY ($2)",
    "walk(float8, bytea, int)": f"{_SESSION} WHERE s.key > $2 ORDER BY s.key LIMIT $3",
    "whose(float8, bytea)": f"{_SESSION} WHERE s.principal = $2 ORDER BY s.created",
    "handle(float8, bytea)": f"{_SESSION} WHERE s.handle = $2",
    "inspect(bytea[])": "SELECT inspect($1)",
    "commit(float8, change[])": "SELECT refusal, body, now FROM commit($2, $1)",
    "sweep(float8, int, int)": "SELECT looked, ended, wait FROM sweep($2, $3, $1)",
    "listen(float8, float8)": "SELECT listen($2, $1)",
    "claim(float8, int, float8, bytea)": (
        "SELECT end_id, body, why, at, tries, now FROM claim($2, $3, $4, $1)"
    ),
    "settle(float8, bytea[], bytea[], float8[], bool[])": "SELECT settle($2, $3, $4, $5, $1)",
    "acquire(float8, bytea, bytea, float8)": "SELECT acquire($2, $3, $4, $1)",
    "publish(text[])": (
        "SELECT pg_notify(current_schema() || '.said', said) FROM"
        " (SELECT said FROM unnest($1) WITH ORDINALITY AS u (said, n) ORDER BY n) s"
    ),
    "release(bytea, bytea)": "DELETE FROM lease WHERE name = $1 AND holder = $2",
}


def greeting(schema: str, timeout: float, listens: str | None) -> bytes:
    """
    What a new connection says first, in one go. Its first result with rows is
    one of one row: the schema's version, and the OID of the type C{change}.

    @param schema: the namespace; letters, digits and underscores.
    @param timeout: seconds after which the server gives a statement up, so
        that nothing is done long after nobody waits for it any more.
    @param listens: to what: C{"ended"}, keys that are dead; C{"said"},
        messages.
    """
    limit = max(1, int(timeout * 1000))
    said = [
        f'SET search_path TO "{schema}"',
        f"SET statement_timeout TO {limit}",
        f"SET lock_timeout TO {max(1, limit * 4 // 5)}",
        "SET default_transaction_isolation TO 'read committed'",
        # Plans are made while the tables are small and kept when they have grown.
        "SET enable_seqscan TO off",
        # Nothing is joined but by key.
        "SET enable_hashjoin TO off",
        "SET enable_mergejoin TO off",
        "SET plan_cache_mode TO force_generic_plan",
        # Where meta is, change is too.
        f"""SELECT value, 'change'::regtype::oid FROM "{schema}".meta WHERE name = 'schema'""",
    ]
    said += [f"PREPARE {name} AS {text}" for name, text in _STATEMENTS.items()]
    if listens is not None:
        said.append(f'LISTEN "{schema}.{listens}"')
    return "; ".join(said).encode("ascii")


def making(schema: str) -> bytes:
    """
    What makes the tables and functions if there are none: all or nothing, and
    many may do it at once.
    """
    body = "".join((_TABLES, _HELP, _COMMIT, _SWEEP, _ENDS, _LEASES))
    return f"""
SET search_path TO "{schema}";
DO $make$
BEGIN
    PERFORM pg_advisory_xact_lock({_LOCK});
    IF to_regclass('"{schema}".meta') IS NOT NULL THEN
        RETURN;  -- another was faster
    END IF;
    IF to_regnamespace('"{schema}"') IS NULL THEN
        CREATE SCHEMA "{schema}";
    END IF;
    {body}
    INSERT INTO meta VALUES ('schema', {SCHEMA});
END
$make$
""".encode("ascii")
