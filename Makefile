# Everything a developer or a CI runs. `make help` lists the targets.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  = -s -w -X main.release=$(VERSION)
PROGRAMS = $(notdir $(patsubst %/main.go,%,$(wildcard cmd/*/main.go)))
TOOLS   := $(CURDIR)/.nodevisor-tools
LINT    := v2.15.0
NFPM    := v2.43.0
FUZZTIME ?= 30s
FUZZERS  ?= $(shell nproc)
# Of the changes that an upgrade makes to the disk, every Kth is made to fail; and how long make soak interrupts at random.
EVERY ?= 1
SOAK  ?= 1h
FAULTS = cd faults && go test -count 1 -tags faults
# What `make bench` measures, and beside what: see bench/doc.go.
PARTS     ?= upgrade postgres
PEER      ?= build/e2e/cosmovisor
PG_CLIENT ?= $(TOOLS)/postgresql-client-17/bin
# What tests use beyond Go and make; `make deps` installs it on Debian.
PACKAGES := gcc libc6-dev git procps strace postgresql prometheus systemd dbus iproute2 rpm xfsprogs btrfs-progs
WANTED   := git:git pgrep:procps strace:strace $(firstword $(wildcard /usr/lib/postgresql/*/bin/initdb) initdb):postgresql promtool:prometheus systemd-analyze:systemd dbus-daemon:dbus ip:iproute2 rpm:rpm mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs
# The race detector needs cgo and a C compiler.
RACE     = $(shell test "$$(go env CGO_ENABLED)" = 1 && command -v $$(go env CC) >/dev/null && echo -race)
SUDO     = $(shell test "$$(id -u)" = 0 || echo sudo)
MISSING  = $(if $(RACE),,gcc(no race detector)) $(foreach w,$(WANTED),$(shell command -v $(firstword $(subst :, ,$(w))) >/dev/null || echo $(lastword $(subst :, ,$(w)))))

.DEFAULT_GOAL := build
.PHONY: build test test-postgres demo demo-postgres lint e2e e2e-systemd cover fuzz faults powercuts soak soak-vm bench deb rpm packages packages-check deps clean help

build: ## all programs, into build/
	@mkdir -p build
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o build/ $(PROGRAMS:%=./cmd/%)

test: ## go vet, then unit tests and scripts, under the race detector where there is a C compiler
	@test -z "$(strip $(MISSING))" || echo "missing on this machine: $(strip $(MISSING)); make deps installs it"
	go vet ./...
	go test $(RACE) -timeout 45m ./...

test-postgres: ## databases against another server: PG_BIN=/usr/lib/postgresql/17/bin; pg_dump on PATH must be as new
	@test -x "$(PG_BIN)/initdb" || { echo "PG_BIN must name the directory of initdb, pg_ctl and postgres"; exit 2; }
	PG_BIN=$(PG_BIN) go test $(RACE) -timeout 30m ./internal/pgtest ./snapshot/postgres/...

demo: ## an upgrade of a running node, with its timeline
	go run ./testdata/demo

demo-postgres: ## the same with the node's blocks in PostgreSQL; then a bad upgrade, its rollback, and the proof
	go run ./testdata/demo -postgres

lint: $(TOOLS)/golangci-lint-$(LINT) ## golangci-lint, pinned; built once, into .nodevisor-tools/
	$< run ./...

$(TOOLS)/golangci-lint-$(LINT):
	GOBIN=$(TOOLS) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT)
	mv $(TOOLS)/golangci-lint $@

e2e: build ## upgrades of a real chain, with a peer
	go test -tags e2e -count 1 -timeout 20m ./e2e/

e2e-systemd: $(TOOLS)/nfpm-$(NFPM) ## the package on a booted systemd: stops, kills and power cuts in each phase of an upgrade; as root
	NFPM=$< go test -tags e2e -count 1 -parallel 8 -timeout 10m ./e2e/systemd/

cover: ## build/cover.html: which lines the tests ran
	@mkdir -p build
	go test -coverprofile build/cover.out ./...
	go tool cover -html build/cover.out -o build/cover.html
	go tool cover -func build/cover.out | tail -n 1

fuzz: ## each fuzz test for FUZZTIME, FUZZERS at a time; a failing input is named, and kept
	@grep -ro --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | sed 's|/[^/]*:func | |' | sort -u | xargs -n 2 -P $(FUZZERS) .ci/fuzz $(FUZZTIME)

bench: $(PEER) $(PG_CLIENT) ## Nodevisor beside Cosmovisor, pg_dump and psql, in tables; WRITE=1 puts them into docs/benchmarks.md
	@mkdir -p build
	go test -c -o build/bench.test ./bench
	cd bench && PEER=$(abspath $(PEER)) BENCH_PG_CLIENT=$(PG_CLIENT) BENCH_PARTS="$(PARTS)" BENCH_WRITE=$(if $(WRITE),../docs/benchmarks.md) \
		BENCH_ROUNDS=$${BENCH_ROUNDS:-5} BENCH_PG_SIZE=$${BENCH_PG_SIZE:-1G} BENCH_TREE=$${BENCH_TREE:-1024x2M} BENCH_IDLE=$${BENCH_IDLE:-30s} \
		../build/bench.test -test.run '^TestBench$$' -test.timeout 4h

build/e2e/cosmovisor:
	cd testdata/peer && go build -ldflags '-s -w' -o $(CURDIR)/$@ cosmossdk.io/tools/cosmovisor/cmd/cosmovisor

$(TOOLS)/postgresql-client-17/bin:
	bench/client.sh $(@D)

faults: ## a whole upgrade, and a roll-back, with each of their changes to the disk failing, and power cuts (EVERY=20: a sample); file systems in loop devices
	$(FAULTS) -timeout 4h -args -every $(EVERY) -soak 20s
	go test -tags loopfs -count 1 -run LoopFS ./snapshot

powercuts: ## a whole upgrade, and a roll-back, with the power cut after each flush of the disk, on ext4, XFS and btrfs (EVERY=20: a sample); as root
	$(FAULTS) -run TestPowerCuts -timeout 4h -args -every $(EVERY)

soak: ## upgrades that are interrupted at random moments, for SOAK
	$(FAULTS) -run TestSoak -timeout 0 -args -soak $(SOAK)

soak-vm: ## the same in a virtual machine whose power is cut; as root, qemu and Debian's kernel come from apt
	faults/vm/build.sh build/vm
	$(FAULTS),vm -run TestSoakVM -timeout 0 -args -vm $(CURDIR)/build/vm -soak $(SOAK)

deb rpm: $(TOOLS)/nfpm-$(NFPM) ## one kind of package, with its bill of materials and digests, into dist/
	NFPM=$< packaging/build.sh $@

packages: $(TOOLS)/nfpm-$(NFPM) ## both kinds
	NFPM=$< packaging/build.sh deb rpm

packages-check: $(TOOLS)/nfpm-$(NFPM) ## builds the packages twice, installs, upgrades, removes and purges them in roots of their own
	NFPM=$< go test -tags packages -count 1 -timeout 30m ./packaging/

$(TOOLS)/nfpm-$(NFPM):
	GOBIN=$(TOOLS) go install github.com/goreleaser/nfpm/v2/cmd/nfpm@$(NFPM)
	mv $(TOOLS)/nfpm $@

deps: ## Debian packages that the tests use, if they are missing
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	test -z "$$missing" || { $(SUDO) apt-get update -q && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; }

clean: ## what the build left here; not .nodevisor-tools/
	rm -rf build dist

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9 -]+:.*## / {printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
