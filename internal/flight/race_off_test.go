//go:build !race

package flight

const underRace = false
