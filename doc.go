// Package haven holds the nouns that the parts of Haven share: hosts, virtual
// machines, evidence, verdicts, incidents, proofs and orders. It imports the
// standard library only and does nothing; the verbs live in the packages that
// use these words.
//
// The words are those of docs/architecture.md. The promises P1 to P9 named in
// comments all over the code are written down there as well.
package haven
