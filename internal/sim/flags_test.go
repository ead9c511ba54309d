package sim_test

import "flag"

// Flags of the test binary; see the package's documentation.
var (
	flagSeeds  = flag.Int("seeds", 0, "how many seeds TestSeeds runs")
	flagSeed   = flag.Int64("seed", -1, "the one seed that TestSeeds runs")
	flagRepeat = flag.Int("repeat", 1, "how often it runs it")
	flagTrace  = flag.Bool("trace", false, "write every transcript, with the agents' logs")
	flagTable  = flag.Int("table", 0, "how many lives of the largest cluster TestDetection plays for its table")
)
