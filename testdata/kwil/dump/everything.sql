--
-- PostgreSQL database dump
--

\restrict VWKoYH2oR7

-- Dumped from database version 16.4
-- Dumped by pg_dump version 16.10

SET statement_timeout = 0;
SET lock_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET row_security = off;

--
-- Name: kwild; Type: DATABASE; Schema: -; Owner: -
--

CREATE DATABASE kwild WITH TEMPLATE = template0 ENCODING = 'UTF8' LOCALE_PROVIDER = libc LOCALE = 'C';


\unrestrict VWKoYH2oR7
\connect kwild
\restrict VWKoYH2oR7

SET statement_timeout = 0;
SELECT pg_catalog.set_config('search_path', '', false);

ALTER DATABASE kwild SET work_mem TO '64MB';

--
-- Name: ds_x; Type: SCHEMA; Schema: -; Owner: -
--

CREATE SCHEMA ds_x;


--
-- Name: kwild_voting; Type: SCHEMA; Schema: -; Owner: -
--

CREATE SCHEMA kwild_voting;


--
-- Name: clean(text); Type: FUNCTION; Schema: ds_x; Owner: -
--

CREATE FUNCTION ds_x.clean(a text) RETURNS text
    LANGUAGE plpgsql
    AS $_$
DECLARE
    -- a comment of the function's own

    kept text := '
-- inside a literal

still inside';
    escaped text := E'it\'s
-- inside an escaped literal

';
    doubled text := E'a''b\'
-- still escaped';
    "odd
-- name" int;
BEGIN
    /* a block comment

-- with a line that looks like one
-- and one that ends it */
-- and one that doesn't
    EXECUTE $$
-- inside the inner quote

$$;
    RETURN a || $1; -- not a comment line
	  -- indented

END;
-- the last line, without a line break$_$;


--
-- Name: native(integer); Type: FUNCTION; Schema: ds_x; Owner: -
--

CREATE FUNCTION ds_x.native(a integer) RETURNS integer
    LANGUAGE plpython3u
    AS $$
x = """

-- this is a text of Python's
"""
return a
$$;


--
-- Name: atomic(); Type: FUNCTION; Schema: ds_x; Owner: -
--

CREATE FUNCTION ds_x.atomic() RETURNS integer
    LANGUAGE sql
    BEGIN ATOMIC
 SELECT 1;
END;


--
-- Name: notes; Type: TABLE; Schema: ds_x; Owner: -
--

CREATE TABLE ds_x.notes (
    id integer DEFAULT 1 NOT NULL,
    body text DEFAULT '
-- a default of three lines

CREATE SCHEMA inside;'::text,
    "a;b FROM stdin;" text
);


--
-- Name: "we""ird
-- table"; Type: TABLE; Schema: ds_x; Owner: -
--

CREATE TABLE ds_x."we""ird

-- table" (
    x text
);


CREATE TABLE kwild_voting.voters (
    id bytea NOT NULL,
    name bytea NOT NULL,
    power bigint NOT NULL
);


--
-- Data for Name: notes; Type: TABLE DATA; Schema: ds_x; Owner: -
--

COPY ds_x.notes (id, body, "a;b FROM stdin;") FROM stdin;
1	-- x	\N
2	a\nb	COPY x FROM stdin;
-- 3	4	5
  -- 6		

	
\\.	'	"
\.


COPY ds_x."we""ird

-- table" (x) FROM stdin;
--
\.


COPY ds_x.empty  FROM stdin;
\.


--
-- Data for Name: voters; Type: TABLE DATA; Schema: kwild_voting; Owner: -
--

COPY kwild_voting.voters (id, name, power) FROM stdin;
\\xdae5e91f74b95a9db05fc0f1f8c07f95	\\xa7a4b2a9cdedea37a70507f4bb48b66efb6cf9c43775892670e402267486faa5	1
\.


SELECT pg_catalog.setval('ds_x.seq', 20, true);


--
-- Name: notes notes_pkey; Type: CONSTRAINT; Schema: ds_x; Owner: -
--

ALTER TABLE ONLY ds_x.notes
    ADD CONSTRAINT notes_pkey PRIMARY KEY (id);


CREATE VIEW ds_x.v AS
 SELECT 'x
-- y' AS a,
    E'\\
-- z' AS b;


--
-- PostgreSQL database dump complete
--

\unrestrict VWKoYH2oR7

