// Package opgen performs random file operations on a host tree, for tests that
// compare what two watchers heard of them.
//
// A [Generator] keeps a model of the tree that it has made, chooses each operation from it
// with a seeded source of its own, and never reads the tree: equal Options give
// equal operations, on any file system and at any pace. Every operation is possible when
// it is chosen, so an error of the host is an error of the test.
//
// # Static and dynamic
//
// Directories named in Options.Static exist from [New] on and are never renamed or removed:
// a test watches them on both sides from the start. All others are dynamic: made,
// filled, moved and removed as the dice fall, and nobody is expected to have a watch on
// them in time. Most operations concern entries of static directories.
//
// Options.Outside is a directory beside the tree, on the same file system, for moves
// out of the tree and back in.
//
// # What is known
//
// [Generator.Tree] says what the tree must look like, contents included, so that a
// test can look for stale reads after any operation.
package opgen
