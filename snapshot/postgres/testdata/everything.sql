-- What a dump can lose: every kind of value that has more than one text, and every kind of table.
CREATE EXTENSION pgcrypto; CREATE EXTENSION "uuid-ossp"; CREATE EXTENSION hstore;
CREATE TYPE mood AS ENUM ('sad', 'o''k', 'ha ppy'); CREATE TYPE pair AS (a int, b text); CREATE DOMAIN height AS bigint CHECK (VALUE >= 0);
CREATE TABLE vals (id bigint PRIMARY KEY, f4 real, f8 float8, n numeric, ts timestamptz, tz timetz, iv interval, b bytea, j jsonb, j0 json, arr text[], p pair, m mood, h height, cash money,
	u uuid DEFAULT public.uuid_generate_v4(), r int4range, ip inet, bits bit varying, t text, x xml, hs hstore, cls regclass, twice bigint GENERATED ALWAYS AS (id * 2) STORED);
INSERT INTO vals SELECT i, sqrt(i)::real / 3, exp(i) / 7, i::numeric / 3, '2024-03-31 01:59:59.123456+00'::timestamptz + i * interval '1 hour 1 microsecond', '12:00:00+05:30',
	make_interval(i, i % 12, 0, i, 1, 2, i / 7.0), decode(md5(i::text), 'hex') || '\x00ff0a5c'::bytea, jsonb_build_object('k', i, 'esc', E'a\n"\\'), '{"b":1,  "a":2}', ARRAY[NULL, '', 'a,b', '{}', i::text],
	(i, E'x\ty')::pair, 'o''k', i, i * 1.5, public.uuid_generate_v4(), int4range(i, i + 5), '::1/64', B'1011', repeat('z', i), '<a>&amp;</a>', 'k=>v', 'vals'::regclass FROM generate_series(1, 200) i;
INSERT INTO vals (id, f4, f8, n, ts, t) VALUES (1000, 'NaN', '-Infinity', 'NaN', 'infinity', NULL), (1001, '-0', 5e-324, '-0.000', '0044-03-15 BC', '');
CREATE TABLE nasty (a text, b text);
INSERT INTO nasty VALUES ('-- z', NULL), ('  -- z', ''), ('', ''), (NULL, NULL), ('   ', E'\t'), (E'\\N', E'\\.'), (E'a\r\nb', E'\r'), ('SET x = 1;', '\connect x'), (E'\\.', NULL), ('COPY nasty (a, b) FROM stdin;', '\N'), (E'\x01\x7f', 'ä€😀');
INSERT INTO nasty SELECT * FROM nasty; -- every row twice
CREATE TABLE none (); INSERT INTO none DEFAULT VALUES; INSERT INTO none DEFAULT VALUES; INSERT INTO none DEFAULT VALUES;
CREATE TABLE dropped (a int, b int, c int); INSERT INTO dropped VALUES (1, 2, 3); ALTER TABLE dropped DROP COLUMN b; INSERT INTO dropped VALUES (4, 5); ALTER TABLE dropped ADD COLUMN d text DEFAULT 'x';
CREATE TABLE ident (id int GENERATED ALWAYS AS IDENTITY (START 7 INCREMENT 3), s serial, t text); INSERT INTO ident (t) VALUES ('a'), ('b');
CREATE TABLE parted (id int, at date) PARTITION BY RANGE (at); CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE parted_2 PARTITION OF parted DEFAULT; INSERT INTO parted SELECT i, '2024-06-01'::date + i * 20 FROM generate_series(1, 30) i;
CREATE TABLE base (id int); CREATE TABLE derived (x text) INHERITS (base); INSERT INTO base VALUES (1), (2); INSERT INTO derived VALUES (3, 'd');
CREATE TABLE ring_a (id int PRIMARY KEY, b int); CREATE TABLE ring_b (id int PRIMARY KEY, a int REFERENCES ring_a DEFERRABLE); INSERT INTO ring_a VALUES (1, 1); INSERT INTO ring_b VALUES (1, 1);
ALTER TABLE ring_a ADD FOREIGN KEY (b) REFERENCES ring_b; CREATE TABLE self (id int PRIMARY KEY, up int REFERENCES self); INSERT INTO self VALUES (1, 2), (2, 1);
CREATE UNLOGGED TABLE unlogged (id int); INSERT INTO unlogged VALUES (42);
CREATE MATERIALIZED VIEW summed AS SELECT sum(id) FROM vals; CREATE VIEW seen AS SELECT id FROM vals;
CREATE TABLE guarded (id int, who text); INSERT INTO guarded VALUES (1, 'a'), (2, 'b'); ALTER TABLE guarded ENABLE ROW LEVEL SECURITY; ALTER TABLE guarded FORCE ROW LEVEL SECURITY; CREATE POLICY one ON guarded USING (who = 'a');
CREATE SEQUENCE fresh START 10; CREATE SEQUENCE used START 10 INCREMENT -3 MINVALUE -1000 MAXVALUE 10; SELECT nextval('used'), nextval('used');
CREATE SCHEMA "we""ird. sch'ema"; CREATE TABLE "we""ird. sch'ema"."ta.b
le; DROP" ("co""l, (x" int, "a b" text); INSERT INTO "we""ird. sch'ema"."ta.b
le; DROP" VALUES (1, 'w'); CREATE TABLE "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn" (id int); INSERT INTO "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn" VALUES (63); CREATE SEQUENCE "se""q'x"; SELECT nextval('"se""q''x"');
SELECT lo_from_bytea(0, decode(repeat('00ff0a', 3000), 'hex')), lo_from_bytea(0, ''), lo_from_bytea(0, '\x0a');
CREATE FUNCTION blank() RETURNS text LANGUAGE sql AS $$

-- a comment
SELECT 'x' $$;
CREATE TABLE long (t text); INSERT INTO long SELECT string_agg(md5(i::text), '') FROM generate_series(1, 60000) i;
ALTER DATABASE chain SET datestyle = 'German'; ALTER DATABASE chain SET bytea_output = 'escape'; ALTER DATABASE chain SET extra_float_digits = -5; ALTER DATABASE chain SET timezone = 'Asia/Kolkata';
ALTER DATABASE chain SET default_transaction_read_only = on;
