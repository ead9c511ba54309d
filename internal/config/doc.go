// Package config reads the one configuration file of a cluster. The file is
// the same on every host; what differs from host to host stands in its hosts
// section.
//
// Reading is strict: unknown, repeated and empty keys are errors, values have
// stated ranges, and relations between values are checked. All errors are
// reported at once, each with its place in the file, the line itself and what
// to do about it. The keys, their defaults, ranges and meanings are written
// down once, in keys.go; docs/configuration.md is generated from there.
//
// Secrets are never in the file: it names files that hold them (see Secret).
package config
