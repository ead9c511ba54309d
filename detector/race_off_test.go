//go:build !race

package detector

// raceEnabled says that the race detector slows everything down.
const raceEnabled = false
