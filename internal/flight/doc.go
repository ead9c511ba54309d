// Package flight is the flight recorder: what the judge saw and concluded, step
// by step, kept so that it can be judged again (P9).
//
// A Tape takes each step of the judge down in the judge's own loop: it takes
// evidence apart into numbers and keeps what changed, which needs no I/O and no
// lock. Its blocks are self-contained: each begins with the judge's memory and a
// whole input. A Recorder keeps the last minute of blocks in memory and, as long
// as its agent is master, writes one file for each open incident: the minute
// before, the minute around each change of a verdict, and a word on what was left
// out. It never makes the judge wait: what a disk does not take in time is lost,
// and the file says so (P8).
//
// A recording is a gzip file of JSON lines; each block is a gzip member of its
// own, so that a file that ends anywhere is readable up to there. Replay runs it
// through the judge again, with the settings that it was recorded with or others.
package flight
