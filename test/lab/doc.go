// Package lab builds a cluster of real parts on one machine: hosts are network,
// mount and PID namespaces with a libvirtd of their own, their VMs are real QEMU
// guests that keep a journal on their disk, their BMCs speak RMCP+ on a network
// of their own, and their shared storage can hang, fail or slow down, one host at
// a time.
//
// It needs root, /dev/fuse, cgroup v2 and the packages of packages.txt. All that
// it makes carries the lab's prefix and is taken away by [Lab.Close], by a guard
// process when the owner dies, or by [Down].
//
// Nobody must install packages meanwhile: a new /etc/passwd or /etc/group of the
// machine takes the place of those that hosts have had since their power-on, and
// their libvirtd does not start again.
//
// The program that calls [New] is also the program of the lab's helpers: it must
// call [RunChild] first thing in main or TestMain.
//
// What a lab cannot show: hosts share one kernel, so that a boot id is drawn for
// each power-on and mounted over the kernel's, the wall clock is one, and data in
// the page cache survives a power cut.
package lab
