// Package bench measures Nodevisor beside what operators use in its place, in one run: a Cosmovisor for upgrades, and
// pg_dump, gzip, psql and cp for databases.
//
//	make bench                      everything; WRITE=1 puts the tables into docs/benchmarks.md
//	make bench PARTS=upgrade        one part: upgrade or postgres
//	make bench PEER=/path/to/other  another Cosmovisor than v1.5.0 of testdata/peer; PEER= for none
//	make bench PG_CLIENT=           without the newer client programs that client.sh fetches
//
// The variables, with what `make bench` sets and, in parentheses, what `go test ./bench` takes, which is there to show
// that all of it still works:
//
//	BENCH_ROUNDS    5 (1)         rounds; each measures everything once, in changing order
//	BENCH_PG_SIZE   1G (2M)       of the database, in bytes with an optional K, M or G
//	BENCH_TREE      1024x2M (16x64K)  tables of the big data directory, and the size of each
//	BENCH_IDLE      30s (100ms)   for how long an idle supervisor is looked at
//	BENCH_DIR       the temporary directory; its file system is what is measured
//	BENCH_RAM_DIR   /dev/shm, where an fsync costs nothing
//	BENCH_PG_CLIENT a directory with a pg_dump of 16 or newer (none)
//	PEER            a Cosmovisor (none)
//
// All that is measured is real: the programs as they are built for use, on a real file system, beside a real PostgreSQL
// with fsync on. A figure is the median over the rounds.
package bench
