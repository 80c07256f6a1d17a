// Package faults carries whole upgrades out with the built program and makes each of its changes to the disk fail, one
// after another: the program is killed before its nth fsync, rename, link, write ..., or is told that the disk is broken,
// full, or another one. Then it is started again, and must end where it would have ended undisturbed.
//
// Nobody lists the places. A file system of its own (faultfs) counts the changes of the whole program, and the number is
// counted up until nothing is met any more, so that code which is added later is met, too.
//
// A kill loses nothing that was written; a power cut does. For that a disk (faultdisk) records each write and each flush of
// an upgrade, and is taken back to every flush in turn.
//
// The tests carry the build tag faults, and are run by `make faults` (every place), `make powercuts` (those alone), `make
// soak` (random moments) and, with the tag vm, `make soak-vm` (the same, of a virtual machine).
package faults
