package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Pirania is a voucher as LibreMesh's pirania keeps it: one JSON object in one file, ID.json in /etc/pirania/vouchers. The
// fields are those that voucher_init in packages/pirania/files/usr/lib/lua/voucher/vouchera.lua of libremesh/lime-packages
// reads (commit 8b5ebdb, August 2026); dates are seconds since 1970. What pirania does not know is in fields of our own, which
// it ignores.
type Pirania struct {
	ID           string `json:"id"`
	Name         string `json:"name"`
	Code         string `json:"code"`
	MAC          string `json:"mac,omitempty"`
	Minutes      *int64 `json:"duration_m,omitempty"` // absent: permanent
	Created      int64  `json:"creation_date"`
	Activated    int64  `json:"activation_date,omitempty"`
	Deadline     int64  `json:"activation_deadline,omitempty"`
	Invalidated  int64  `json:"invalidation_date,omitempty"`
	Changes      int64  `json:"mod_counter"`
	Author       string `json:"author_node,omitempty"`
	Unrestricted bool   `json:"unrestricted"`

	Bytes        uint64 `json:"weft_bytes,omitempty"`
	Used         uint64 `json:"weft_used,omitempty"`
	Devices      int    `json:"weft_devices,omitempty"`
	MACs         []MAC  `json:"weft_macs,omitempty"` // all, when there is more than one
	Note         string `json:"weft_note,omitempty"`
	FromCreation bool   `json:"weft_from_creation,omitempty"`
}

func seconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func fromUnix(s int64) time.Time {
	if s == 0 {
		return time.Time{}
	}
	return time.Unix(s, 0).UTC()
}

// Pirania returns the voucher in pirania's form.
func (v *Voucher) Pirania() Pirania {
	p := Pirania{ID: v.ID, Name: v.Name, Code: v.Code, Created: seconds(v.Created), Activated: seconds(v.Activated),
		Deadline: seconds(v.Deadline), Invalidated: seconds(v.Revoked), Changes: v.Changes, Author: v.Author, Unrestricted: v.Unrestricted,
		Bytes: v.Bytes, Used: v.Used, Note: v.Note, FromCreation: v.FromCreation}
	if v.Minutes > 0 || v.Removed {
		p.Minutes = &v.Minutes
	}
	if len(v.MACs) > 0 {
		p.MAC = v.MACs[0].String()
	}
	if len(v.MACs) > 1 {
		p.MACs = slices.Clone(v.MACs)
	}
	if v.Devices > 1 {
		p.Devices = v.Devices
	}
	return p
}

// voucher is the other direction.
func (p *Pirania) voucher() (Voucher, error) {
	v := Voucher{ID: p.ID, Name: p.Name, Code: p.Code, Created: fromUnix(p.Created), Activated: fromUnix(p.Activated),
		Deadline: fromUnix(p.Deadline), Revoked: fromUnix(p.Invalidated), Changes: max(p.Changes, 1), Author: p.Author, Unrestricted: p.Unrestricted,
		Bytes: p.Bytes, Used: p.Used, Devices: max(p.Devices, 1), MACs: p.MACs, Note: p.Note, FromCreation: p.FromCreation}
	if p.Created == 0 {
		return v, fmt.Errorf("voucher %q has no creation_date", p.ID)
	}
	if p.Minutes != nil {
		v.Minutes = *p.Minutes
		v.Removed = *p.Minutes == 0
	}
	if p.MAC != "" && len(v.MACs) == 0 {
		m, err := ParseMAC(p.MAC)
		if err != nil {
			return v, fmt.Errorf("voucher %q: %w", p.ID, err)
		}
		v.MACs = []MAC{m}
	}
	if len(v.MACs) == 0 {
		v.Activated = time.Time{} // deactivated: in pirania it begins anew with its next device
	}
	return v, nil
}

// ParsePirania reads vouchers in pirania's form, at most 32 MiB: files of its folder one after the other, a list, what
// `ubus call pirania list_vouchers` prints, or what nodes share of them ({"ID": {…}}).
func ParsePirania(r io.Reader) ([]Pirania, error) {
	lr := &io.LimitedReader{R: r, N: maxStoreBytes + 1}
	dec := json.NewDecoder(lr)
	var out []Pirania
	for {
		var raw json.RawMessage
		err := dec.Decode(&raw)
		if lr.N == 0 {
			return nil, errors.New("read pirania vouchers: more than 32 MiB")
		}
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err == nil {
			out, err = appendPirania(out, raw, 0)
		}
		if err != nil {
			return nil, fmt.Errorf("read pirania vouchers: %w", err)
		}
	}
}

func appendPirania(out []Pirania, raw json.RawMessage, depth int) ([]Pirania, error) {
	if depth > 2 || len(out) > MaxVouchers {
		return nil, errors.New("these are not vouchers, or too many of them")
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) == nil {
		for _, m := range list {
			var err error
			if out, err = appendPirania(out, m, depth+1); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	var obj map[string]json.RawMessage
	if err := json.Unmarshal(raw, &obj); err != nil {
		return nil, err
	}
	if _, ok := obj["code"]; ok && (len(obj["code"]) > 0 && obj["code"][0] == '"') {
		var p Pirania
		if err := json.Unmarshal(raw, &p); err != nil {
			return nil, err
		}
		return append(out, p), nil
	}
	keys := make([]string, 0, len(obj))
	for k := range obj {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		if m := strings.TrimLeft(string(obj[k]), " \t\r\n"); strings.HasPrefix(m, "{") || strings.HasPrefix(m, "[") {
			var err error
			if out, err = appendPirania(out, obj[k], depth+1); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// Export returns all vouchers in pirania's form.
func (s *Vouchers) Export() []Pirania {
	all := s.List()
	out := make([]Pirania, len(all))
	for i := range all {
		out[i] = all[i].Pirania()
	}
	return out
}

// Import adds vouchers, all or none. One whose ID is here already replaces ours if it has been changed more often
// (mod_counter, as between pirania's nodes), and is left out otherwise. It returns how many were added or replaced.
func (s *Vouchers) Import(in []Pirania) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, n := slices.Clone(s.all), 0
	at := make(map[string]int, len(next))
	for i := range next {
		at[next[i].ID] = i
	}
	for i := range in {
		v, err := in[i].voucher()
		if err != nil {
			return 0, fmt.Errorf("import vouchers: %w", err)
		}
		if j, ok := at[v.ID]; ok {
			if next[j].Changes >= v.Changes {
				continue
			}
			v.Used = max(v.Used, next[j].Used)
			next[j] = v
		} else {
			at[v.ID] = len(next)
			next = append(next, v)
		}
		n++
	}
	if n == 0 {
		return 0, nil
	}
	if err := checkAll(next); err != nil {
		return 0, fmt.Errorf("import vouchers: %w", err)
	}
	return n, s.saveLocked(next)
}
