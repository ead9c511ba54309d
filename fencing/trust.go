package fencing

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/haven-ha/haven"
)

const (
	// onFresh is for how long an "on" that was read while the host lived
	// vouches for a device whose GUID cannot be compared (design §4).
	onFresh = 10 * time.Minute
	// livedWithin is how near to a reading a sign of life must be for the host
	// to have lived while it was read.
	livedWithin = 10 * time.Second
	// lifeSigns and lifeMargin keep signs of life that were on their way, or in
	// a buffer of a reader that stalled, from contradicting an "off" that is
	// true: a contradiction needs so many signs, the first later than the "off"
	// by the margin and each later than the one before by as much. What a dead
	// host left in buffers comes in one burst; a live host goes on and on.
	lifeSigns  = 3
	lifeMargin = 2 * time.Second
)

// Trust decides whether what one device says about one host may be a proof.
// It is pure: it is told of readings and of signs of life, and judges.
//
// A device is trusted when its GUID is the one recorded for the host, or when
// it said "on" within ten minutes while the host lived. It is never trusted
// while any of these stands:
//
//   - it shares an address or a GUID with another host's device (CrossCheck);
//   - its GUID is not the one that was recorded;
//   - it said "off" about a host that went on living on the same boot.
//
// The last two stay until an operator clears them.
type Trust struct {
	recorded GUID
	guid     GUID // last one seen

	on    Reading // last "on" that was read while the host lived
	seen  bool    // on is valid
	early Reading // an "on" that waits for a sign of life close to it

	boot    haven.BootID // of the last sign of life
	aliveAt time.Time
	off     Reading      // an "off" that a later sign of life would contradict
	offBoot haven.BootID // the boot that it would be contradicted by, or empty
	signAt  time.Time    // of the last sign of life that counts against it
	signs   int

	conflict string // of the configuration; ends with it
	distrust string // sticky
}

// Record sets the GUID that the ledger holds for the host. Empty means none.
func (t *Trust) Record(g GUID) {
	t.recorded = g
	t.compare()
}

// Learned returns the GUID that is worth recording in the ledger: the one that
// came with an "on" while the host lived, when none is recorded yet.
func (t *Trust) Learned() (GUID, bool) {
	if t.recorded != "" || !t.seen || t.on.GUID == "" || t.conflict != "" || t.distrust != "" {
		return "", false
	}
	return t.on.GUID, true
}

// Seen returns the GUID that the device gave last, or nothing.
func (t *Trust) Seen() GUID { return t.guid }

// Conflict sets what CrossCheck found, or clears it when why is empty.
func (t *Trust) Conflict(why string) { t.conflict = why }

// Clear forgets a sticky distrust, because an operator said so by name. The
// GUID seen last becomes the recorded one, and is returned for the ledger.
func (t *Trust) Clear() GUID {
	t.distrust = ""
	t.offBoot = ""
	if t.guid != "" {
		t.recorded = t.guid
	}
	return t.recorded
}

// Distrusted tells why an operator is needed, or is empty.
func (t *Trust) Distrusted() string { return t.distrust }

// Alive tells that the host showed life, on this boot, in something that
// arrived at this moment of the reader's clock. Only what the host itself sent
// or wrote counts, not what others remember of it.
func (t *Trust) Alive(boot haven.BootID, at time.Time) {
	if t.offBoot != "" && boot != t.offBoot {
		t.offBoot = "" // it booted again: the "off" may well have been true
	}
	if t.offBoot != "" && at.Sub(t.signAt) >= lifeMargin {
		t.signAt = at
		t.signs++
		if t.signs >= lifeSigns && t.distrust == "" {
			t.distrust = fmt.Sprintf("it said off at %s, and the host still lived on the same boot %s later: it is another host's device, or it lies",
				t.off.Finish.Format(time.TimeOnly), at.Sub(t.off.Finish).Round(time.Second))
		}
	}
	t.boot, t.aliveAt = boot, at
	// Its first sign of life often comes a moment after the first reading.
	if t.early.State == haven.PowerOn {
		t.vouch(t.early)
	}
}

// vouch takes an "on" for one about a live host, if the host lived near to it.
func (t *Trust) vouch(on Reading) {
	t.early = on
	if t.boot != "" && on.Start.Sub(t.aliveAt).Abs() <= livedWithin {
		t.on, t.seen, t.early = on, true, Reading{}
	}
}

// Meet tells which device answered.
func (t *Trust) Meet(g GUID) {
	if g != "" {
		t.guid = g
		t.compare()
	}
}

// Read tells of a reading that succeeded.
func (t *Trust) Read(r Reading) {
	t.Meet(r.GUID)
	switch r.State {
	case haven.PowerOn:
		t.vouch(r)
	case haven.PowerOff:
		t.early = Reading{}
		if t.boot != "" && t.offBoot == "" {
			t.off, t.offBoot, t.signAt, t.signs = r, t.boot, r.Finish, 0
		}
	case haven.PowerUnknown:
	}
}

func (t *Trust) compare() {
	if t.recorded != "" && t.guid != "" && t.recorded != t.guid && t.distrust == "" {
		t.distrust = fmt.Sprintf("its GUID was %s and is %s now: another device answers at its address, or the board was replaced", t.recorded, t.guid)
	}
}

// Judge says whether an "off" that was first read at the given moment, by a
// device that gave this GUID, may be a proof, and why.
func (t *Trust) Judge(firstOff time.Time, guid GUID) (bool, string) {
	switch {
	case t.conflict != "":
		return false, t.conflict
	case t.distrust != "":
		return false, t.distrust + "; an operator must clear it"
	case t.recorded != "" && guid != "" && guid != t.recorded:
		return false, "its GUID is not the recorded one"
	case t.recorded != "" && guid == t.recorded:
		return true, "its GUID is the recorded one"
	case !t.seen:
		return false, "it has no recorded GUID, and never said on while the host lived"
	case t.on.GUID != "" && guid != "" && t.on.GUID != guid:
		return false, "its GUID changed since it said on"
	}
	if age := firstOff.Sub(t.on.Finish); age > onFresh {
		return false, fmt.Sprintf("it has no recorded GUID, and said on %s before, which is too long ago", age.Round(time.Second))
	}
	return true, fmt.Sprintf("it said on %s before, while the host lived", firstOff.Sub(t.on.Finish).Round(time.Second))
}

// Station is one configured device of one host, for CrossCheck.
type Station struct {
	Host    haven.HostID
	Key     string // names the device; unique
	Address string // normalised address and port
	GUID    GUID   // as recorded or seen last, or empty
	// UUID is the host's DMI product UUID, or empty.
	UUID string
	// Accepted says that an operator said that the device is its host's own.
	Accepted bool
}

// CrossCheck compares all configured devices with each other and returns, by
// key, why some of them must not be taken for a proof: an address that is
// configured for two hosts, one device that answers at two hosts' addresses,
// a device whose GUID is another host's UUID and not its own host's.
func CrossCheck(stations []Station) map[string]string {
	found := map[string]string{}
	for _, a := range stations {
		var whys []string
		for _, b := range stations {
			if b.Host == a.Host {
				continue
			}
			switch {
			case a.Address == b.Address:
				whys = append(whys, fmt.Sprintf("its address %s is also configured for %s", a.Address, b.Host))
			case a.GUID != "" && a.GUID == b.GUID:
				whys = append(whys, fmt.Sprintf("its GUID %s is also that of the device of %s", a.GUID, b.Host))
			case a.GUID.MatchesUUID(b.UUID) == haven.Yes && a.GUID.MatchesUUID(a.UUID) != haven.Yes:
				whys = append(whys, fmt.Sprintf("its GUID is the UUID of %s", b.Host))
			}
		}
		if len(whys) > 0 {
			slices.Sort(whys)
			found[a.Key] = strings.Join(slices.Compact(whys), "; ")
		}
	}
	return found
}
