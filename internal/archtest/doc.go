// Package archtest has no code: its tests keep the rules of the whole source tree that a compiler doesn't know.
//
// Which package may import which, and why not (imports_test.go); that every package says what it is for, that no file and
// no package outgrows a reader (source_test.go); and how large the programs and how many their dependencies may get
// (size_test.go). A rule that stands in the way of something good is changed here, in the open, with its reason.
package archtest
