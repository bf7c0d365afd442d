"""What callboard keeps in a PostgreSQL database: three tables, a few counters, and the function that commits a group.

    meta     name -> value              format, the last owner and the last stream number given out
    streams  name -> number epoch version head
    rows     stream part key -> value   `part` is the Table's number
    entries  which value stream         `which` is the Index's number

- Names, keys and values are bytea, which PostgreSQL compares byte by byte, whatever the locale.
- The function checks all guards with their rows locked, and writes nothing where one is not as it must be. So a group
  is one statement, one transaction and one round trip, and the condition stands inside of it: between the look at a
  guard and the write there is no gap into which another writer could fit.
- Stream numbers come from a row of `meta` and not from a sequence: without gaps, they are the count of streams too.
- Everything is found by primary key, so the planner's other ways are switched off for our connections (SETTINGS):
  without statistics, as in a new schema, it would cache a plan that reads whole tables.

Source: https://www.postgresql.org/docs/current/explicit-locking.html (row locks, advisory locks).
"""

from typing import LiteralString

__all__ = ["COMMIT", "CREATE", "FORMAT", "SETTINGS"]

FORMAT = 1

SETTINGS = {
    "default_transaction_isolation": "read committed",  # each statement of the function sees what the locks waited for
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
}

COMMIT: LiteralString = """
SELECT commit_1(
    %s::bytea[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bytea[], %s::boolean[],
    %s::int[], %s::smallint[], %s::bytea[], %s::bytea[],
    %s::int[], %s::smallint[], %s::bytea[], %s::boolean[]
)
"""

CREATE: LiteralString = """
CREATE TABLE meta (name text PRIMARY KEY, value bigint NOT NULL);
INSERT INTO meta VALUES ('format', 1), ('owner', 0), ('streams', 0);

-- Room in each page, so that a head that changes all the time is rewritten in place.
CREATE TABLE streams (
    name bytea PRIMARY KEY,
    number bigint NOT NULL UNIQUE,
    epoch bigint NOT NULL,
    version bigint NOT NULL,
    head bytea NOT NULL
) WITH (fillfactor = 70);

CREATE TABLE rows (
    stream bigint, part smallint, key bytea, value bytea NOT NULL, PRIMARY KEY (stream, part, key)
);

CREATE TABLE entries (which smallint, value bytea, stream bigint, PRIMARY KEY (which, value, stream));
CREATE INDEX entries_of_stream ON entries (stream, which, value);

-- True: all is stored. False: nothing is, since a stream is not at the version that its change was built on, or has
-- seen a newer epoch. A change with built_on 0 makes its stream.
CREATE FUNCTION commit_1(
    names bytea[], built_on bigint[], epochs_max bigint[], epochs bigint[], versions bigint[], heads bytea[],
    erased boolean[],
    row_of int[], row_part smallint[], row_key bytea[], row_value bytea[],
    entry_of int[], entry_which smallint[], entry_value bytea[], entry_present boolean[]
) RETURNS boolean LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    fresh bigint;
    last_number bigint;
    numbers bigint[];
BEGIN
    -- In the order of names, so that two writers cannot wait for each other.
    PERFORM FROM streams WHERE name = ANY (names) ORDER BY name FOR UPDATE;
    IF EXISTS (
        SELECT FROM unnest(names, built_on, epochs_max) AS change (name, built_on, epoch_max)
        LEFT JOIN streams AS stored USING (name)
        WHERE coalesce(stored.version, 0) <> change.built_on OR coalesce(stored.epoch, 0) > change.epoch_max
    ) THEN
        RETURN false;
    END IF;

    UPDATE streams AS stored
    SET epoch = change.epoch, version = change.version, head = coalesce(change.head, stored.head)
    FROM unnest(names, built_on, epochs, versions, heads) AS change (name, built_on, epoch, version, head)
    WHERE stored.name = change.name AND change.built_on > 0;

    SELECT count(*) INTO fresh FROM unnest(built_on) AS change (built_on) WHERE change.built_on = 0;
    IF fresh > 0 THEN
        UPDATE meta SET value = value + fresh WHERE name = 'streams' RETURNING value - fresh INTO last_number;
        INSERT INTO streams
        SELECT name, last_number + row_number() OVER (ORDER BY place), epoch, version, coalesce(head, '')
        FROM unnest(names, built_on, epochs, versions, heads)
            WITH ORDINALITY AS change (name, built_on, epoch, version, head, place)
        WHERE change.built_on = 0;
    END IF;

    SELECT array_agg(stored.number ORDER BY change.place) INTO numbers
    FROM unnest(names) WITH ORDINALITY AS change (name, place) JOIN streams AS stored USING (name);

    IF true = ANY (erased) THEN
        DELETE FROM rows USING unnest(numbers, erased) AS change (number, erased)
        WHERE change.erased AND rows.stream = change.number;
        DELETE FROM entries USING unnest(numbers, erased) AS change (number, erased)
        WHERE change.erased AND entries.stream = change.number;
    END IF;

    IF cardinality(row_of) > 0 THEN
        INSERT INTO rows
        SELECT numbers[change.of], change.part, change.key, change.value
        FROM unnest(row_of, row_part, row_key, row_value) AS change (of, part, key, value)
        WHERE change.value IS NOT NULL
        ON CONFLICT (stream, part, key) DO UPDATE SET value = excluded.value;
        IF array_position(row_value, NULL) IS NOT NULL THEN
            DELETE FROM rows USING unnest(row_of, row_part, row_key, row_value) AS change (of, part, key, value)
            WHERE change.value IS NULL AND rows.stream = numbers[change.of]
                AND rows.part = change.part AND rows.key = change.key;
        END IF;
    END IF;

    IF cardinality(entry_of) > 0 THEN
        DELETE FROM entries USING unnest(entry_of, entry_which, entry_value, entry_present)
            AS change (of, which, value, present)
        WHERE NOT change.present AND entries.which = change.which AND entries.value = change.value
            AND entries.stream = numbers[change.of];
        INSERT INTO entries
        SELECT change.which, change.value, numbers[change.of]
        FROM unnest(entry_of, entry_which, entry_value, entry_present) AS change (of, which, value, present)
        WHERE change.present
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN true;
END
$$;
"""
