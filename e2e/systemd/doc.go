// Package systemd runs the supervisor as a service of a real systemd: one that is booted, in half a second, as PID 1 of
// namespaces of its own (testdata/systemd). It kills processes, freezes them, starves them of memory and pulls the plug, and
// looks each time whether the node is one, and the upgrade comes to its end.
//
// The tests carry the build tag e2e and are run by `make e2e-systemd`, as root. They need the Debian packages of `make deps`;
// a systemd that doesn't boot fails them. The programs under test are those of the package (packaging/build.sh deb), which is
// built first; NODEVISOR_DEB names one that exists already.
package systemd
