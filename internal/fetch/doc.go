// Package fetch downloads a plan's binary without letting the network near the supervisor.
//
// The process that supervises a node sits beside a validator's keys. It doesn't speak HTTP to strangers and doesn't parse
// their archives: a small program of its own (cmd/fetch, the only one that links go-getter) does both, with resource
// limits, a minimal environment and a directory of its own, and as the node's user where the supervisor is root.
// This package runs that program and trusts nothing of what it says: it hashes the downloaded body itself before
// anything in it is looked at, and hands back one regular file.
//
// Invariants:
//
//   - A body is unpacked only after its digest equals the plan's. What a failed attempt left is never looked at again.
//   - Nothing is ever written outside the staging directory; what is in it can't be run by accident: its name is random,
//     its mode 0700. The caller publishes the one file by rename, so a crash at any instruction leaves an old version or a
//     verified one, never a part (Cosmovisor runs a truncated or wrong download at the next start).
//   - The digest in the plan is mandatory. It is what makes a download authentic: the chain voted on it.
package fetch
