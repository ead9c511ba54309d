//go:build race

package sim_test

// underRace says that the race detector runs, which makes everything about ten
// times as slow: samples are smaller then.
const underRace = true
