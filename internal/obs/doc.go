// Package obs joins foreign logging and metrics to Haven's own: the only
// importer of go-hclog and of the Prometheus client.
//
//   - HCLog gives Raft a logger that writes to a *slog.Logger.
//   - LineLogger takes the level-prefixed text lines that memberlist writes.
//   - Metrics makes counters, gauges and histograms named haven_….
//
// Both log bridges demote what repeats: a fault that lasts an hour is told
// once a minute, with a count, and not ten times a second.
package obs
