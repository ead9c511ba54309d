// Package notify tells people what Haven does: it takes events, and sends them
// to targets such as a mail server, an SNMP manager or a web hook.
//
// Queue decides, and is pure: what is told at once, what is a repetition, what
// becomes a summary, what is dropped. Notifier does: each target has a goroutine
// and a queue of its own, so that a target that hangs delays neither another
// target nor whoever has something to tell. The senders are packages below this
// one.
package notify
