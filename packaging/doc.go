// Package packaging holds what the deb and the rpm are made of, and the tests of both: `make packages` builds them,
// `make packages-check` tests them.
package packaging
