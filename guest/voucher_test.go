package guest

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func openStore(t testing.TB, c *clock) (*Vouchers, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "deep", "vouchers.json")
	s, err := OpenVouchers(path, c.now)
	if err != nil {
		t.Fatal(err)
	}
	return s, path
}

func create(t testing.TB, s *Vouchers, spec Spec) Voucher {
	t.Helper()
	v, err := s.Create(spec)
	if err != nil {
		t.Fatal(err)
	}
	return v[0]
}

func TestCodes(t *testing.T) {
	seen := map[string]bool{}
	count := map[rune]int{}
	for range 2000 {
		c := randomLetters(codeLength)
		if seen[c] {
			t.Fatalf("%s twice", c)
		}
		seen[c] = true
		for _, r := range c {
			count[r]++
		}
	}
	if len(count) != len(codeLetters) {
		t.Errorf("%d letters in use, want %d", len(count), len(codeLetters))
	}
	for r, n := range count { // 20000 letters over 22: each about 909, give or take 30
		if n < 700 || n > 1120 {
			t.Errorf("%c came %d times: not fair", r, n)
		}
	}
	if bits := codeLength * math.Log2(float64(len(codeLetters))); bits < 40 || strings.ContainsAny(codeLetters, "ILOU01") {
		t.Error("codes are weak or ambiguous")
	}
}

func TestRedeem(t *testing.T) {
	c := newClock()
	s, path := openStore(t, c)
	v := create(t, s, Spec{Name: "ana", Minutes: 30, Devices: 2})
	if v.State(c.now()) != VoucherNew || len(v.Code) != 11 {
		t.Errorf("new voucher: %+v", v)
	}
	c.add(time.Hour) // time does not run before the first use
	for _, code := range []string{"", "x", "ABCDE-FGHJ", v.Code + "A", v.Code[:10]} {
		if _, err := s.Redeem(code, macA); !errors.Is(err, ErrNoVoucher) {
			t.Errorf("%q: %v", code, err)
		}
	}
	got, err := s.Redeem(" "+strings.ToLower(v.Code[:5])+" "+v.Code[6:]+".", macA)
	if err != nil || !got.Activated.Equal(c.now()) || !slices.Equal(got.MACs, []MAC{macA}) {
		t.Fatalf("redeem: %v %+v", err, got)
	}
	// What was granted is on disk when it is answered.
	again, err := OpenVouchers(path, c.now)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(s.List(), again.List()); d != "" {
		t.Error(d)
	}
	c.add(10 * time.Minute)
	if got, err = s.Redeem(v.Code, macA); err != nil || len(got.MACs) != 1 || got.Ends().Sub(c.now()) != 20*time.Minute {
		t.Errorf("the same device again: %v %+v", err, got)
	}
	if _, err = s.Redeem(v.Code, macB); err != nil {
		t.Errorf("a second device: %v", err)
	}
	if _, err = s.Redeem(v.Code, MAC{4}); !errors.Is(err, ErrVoucherTaken) {
		t.Errorf("a third device: %v", err)
	}
	c.add(20 * time.Minute)
	if _, err = s.Redeem(v.Code, macA); !errors.Is(err, ErrVoucherOver) {
		t.Errorf("after its time: %v", err)
	}
	if _, err := s.Renew(v.ID, Renewal{Minutes: 5, ForgetDevices: true}); err != nil {
		t.Fatal(err)
	}
	if got, err = s.Redeem(v.Code, MAC{4}); err != nil || got.Ends().Sub(c.now()) != 5*time.Minute {
		t.Errorf("after a renewal: %v %+v", err, got)
	}
	if _, err := s.Revoke(v.Code); err != nil { // an owner reads it from a slip of paper
		t.Fatal(err)
	}
	if _, err = s.Redeem(v.Code, MAC{4}); !errors.Is(err, ErrVoucherOver) {
		t.Errorf("after a revocation: %v", err)
	}
	if _, err := s.Revoke("nobody"); err == nil || !strings.Contains(err.Error(), "weft voucher list") {
		t.Errorf("revoke what is not there: %v", err)
	}
}

func TestDeadlineAndBytes(t *testing.T) {
	c := newClock()
	s, path := openStore(t, c)
	late := create(t, s, Spec{Deadline: c.now().Add(time.Hour)})
	fromNow := create(t, s, Spec{Minutes: 60, FromCreation: true})
	data := create(t, s, Spec{Bytes: 1000})
	if _, err := s.Redeem(data.Code, macA); err != nil {
		t.Fatal(err)
	}
	s.Use(data.ID, 400)
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	s, err := OpenVouchers(path, c.now)
	if err != nil {
		t.Fatal(err)
	}
	if v, _ := s.Get(data.ID); v.Used != 400 {
		t.Errorf("used after a restart: %d", v.Used)
	}
	s.Use(data.ID, 600)
	if _, ok := s.For(macA); ok {
		t.Error("used up, and still good")
	}
	if v, err := s.Renew(data.ID, Renewal{Bytes: 1}); err != nil || v.Bytes != 1001 || v.State(c.now()) != VoucherActive {
		t.Errorf("renew: %v %+v", err, v)
	}
	if _, err := s.Renew(data.ID, Renewal{Bytes: 1<<64 - 1}); err == nil {
		t.Error("bytes overflow")
	}
	c.add(time.Hour)
	for _, v := range []Voucher{late, fromNow} {
		if _, err := s.Redeem(v.Code, macA); !errors.Is(err, ErrVoucherOver) {
			t.Errorf("%+v: %v", v, err)
		}
	}
	if n, err := s.Remove(c.now().Add(time.Second)); n != 2 || err != nil || len(s.List()) != 1 {
		t.Errorf("removed %d, %v", n, err)
	}
}

func TestBestVoucher(t *testing.T) {
	c := newClock()
	s, _ := openStore(t, c)
	for _, m := range []int64{0, 90, 30, 60} {
		if _, err := s.Redeem(create(t, s, Spec{Minutes: m}).Code, macA); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []int64{30, 60, 90, 0, 0} {
		if v, ok := s.For(macA); !ok || v.Minutes != want {
			t.Errorf("want the one of %d minutes, have %+v", want, v)
		}
		c.add(30 * time.Minute)
	}
}

// TestFailedSave: what could not be written was not granted.
func TestFailedSave(t *testing.T) {
	c := newClock()
	s, path := openStore(t, c)
	v := create(t, s, Spec{})
	if err := os.Mkdir(path+".new", 0o700); err != nil { // in the way of the new file
		t.Fatal(err)
	}
	if _, err := s.Redeem(v.Code, macA); err == nil {
		t.Error("granted without being written")
	}
	if got, _ := s.Get(v.ID); len(got.MACs) != 0 || !got.Activated.IsZero() {
		t.Errorf("changed without being written: %+v", got)
	}
}

func TestBrokenStore(t *testing.T) {
	for _, b := range []string{"", "{", `{"version":2}`, `{"version":1,"vouchers":[{"id":"a","code":"x","devices":0}]}`,
		`{"version":1,"vouchers":[{"id":"a","code":"x","devices":1},{"id":"b","code":"X","devices":1}]}`} {
		path := filepath.Join(t.TempDir(), "v.json")
		if err := os.WriteFile(path, []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenVouchers(path, nil); err == nil || !strings.Contains(err.Error(), "backup") {
			t.Errorf("%q: %v", b, err)
		}
	}
}

func TestLimits(t *testing.T) {
	s, _ := openStore(t, newClock())
	for _, spec := range []Spec{{Count: MaxVouchers + 1}, {Minutes: -1}, {Minutes: maxMinutes + 1}, {Devices: 65}, {Name: strings.Repeat("x", 300)}} {
		if _, err := s.Create(spec); err == nil {
			t.Errorf("%+v was made", spec)
		}
	}
	v, err := s.Create(Spec{Count: 3, Name: "party"})
	if err != nil || v[2].Name != "party-3" || len(s.List()) != 3 {
		t.Errorf("%v %+v", err, v)
	}
}

// Vouchers as pirania writes them, made of the fields of its vouchera.lua: an unused one, an active one, a permanent one, one
// that was invalidated, one that was deactivated.
const piraniaFiles = `{"id":"Q3TJZS","name":"san-notebook","code":"ZRJUXN","duration_m":60,"creation_date":1631144860,"mod_counter":1,"author_node":"LiMe-aaaaaa","unrestricted":false}
{"id":"xyz8gz","name":"casa-1","code":"OILIKE","mac":"00:11:22:33:44:55","duration_m":2880,"creation_date":1631144860,"activation_date":1631145213,"activation_deadline":1640000000,"mod_counter":2,"author_node":"LiMe-aaaaaa","unrestricted":false}
{"id":"perman","name":"radio","code":"secret_code","mac":"AA:BB:CC:DD:EE:FF","creation_date":1631144860,"activation_date":1631145213,"mod_counter":2,"author_node":"LiMe-bbbbbb","unrestricted":true}
{"id":"inval1","name":"old","code":"ABCDEF","mac":"00:11:22:33:44:66","duration_m":60,"creation_date":1631144860,"activation_date":1631145213,"invalidation_date":1631146000,"mod_counter":3,"author_node":"LiMe-aaaaaa","unrestricted":false}
`

func TestPirania(t *testing.T) {
	c := &clock{time.Unix(1631145300, 0)}
	s, _ := openStore(t, c)
	in, err := ParsePirania(strings.NewReader(piraniaFiles))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := s.Import(in); n != 4 || err != nil {
		t.Fatalf("imported %d: %v", n, err)
	}
	var out bytes.Buffer
	for _, p := range s.Export() {
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(append(b, '\n'))
	}
	// MAC addresses come back in lower case; all else as it was.
	if d := cmp.Diff(strings.Replace(piraniaFiles, "AA:BB:CC:DD:EE:FF", "aa:bb:cc:dd:ee:ff", 1), out.String()); d != "" {
		t.Error(d)
	}
	states := map[string]string{}
	for _, v := range s.List() {
		states[v.ID] = v.State(c.now())
	}
	want := map[string]string{"Q3TJZS": VoucherNew, "xyz8gz": VoucherActive, "perman": VoucherActive, "inval1": VoucherRevoked}
	if d := cmp.Diff(want, states); d != "" {
		t.Error(d)
	}
	if _, err := s.Redeem("zrjuxn", macA); err != nil {
		t.Error(err)
	}
	if _, err := s.Redeem("oilike", macA); !errors.Is(err, ErrVoucherTaken) { // pirania's letters are not ours
		t.Error(err)
	}
	// Older than ours: left out. Newer: taken. All or none.
	if n, err := s.Import(in); n != 0 || err != nil {
		t.Errorf("again: %d %v", n, err)
	}
	in[0].Changes, in[0].Name = 9, "renamed"
	if n, err := s.Import(in); n != 1 || err != nil {
		t.Errorf("a newer one: %d %v", n, err)
	}
	twin := in[0]
	twin.ID = "other"
	if _, err := s.Import([]Pirania{{ID: "fine", Name: "x", Code: "FINE", Created: 1}, twin}); err == nil || len(s.List()) != 4 {
		t.Errorf("a code that is there already: %v", err)
	}
}

func TestPiraniaForms(t *testing.T) {
	one := `{"id":"a","name":"n","code":"AAAAAA","creation_date":1,"mod_counter":1}`
	for _, in := range []string{one, "[" + one + "]", `{"a":` + one + `}`, `{"status":"ok","vouchers":[` + one + `]}`, "\n" + one + "\n\n"} {
		got, err := ParsePirania(strings.NewReader(in))
		if err != nil || len(got) != 1 || got[0].Code != "AAAAAA" {
			t.Errorf("%s: %v %+v", in, err, got)
		}
	}
	s, _ := openStore(t, newClock())
	for _, p := range []Pirania{{ID: "a", Code: "A"}, {ID: "a", Code: "A", Created: 1, MAC: "zz"}, {Code: "A", Created: 1}, {ID: "a", Code: "__", Created: 1}} {
		if n, err := s.Import([]Pirania{p}); err == nil {
			t.Errorf("%+v: imported %d", p, n)
		}
	}
	zero := int64(0)
	if _, err := s.Import([]Pirania{{ID: "gone", Code: "GONE", Created: 1, Minutes: &zero}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Redeem("gone", macA); !errors.Is(err, ErrVoucherOver) {
		t.Errorf("what pirania has removed: %v", err)
	}
}

// TestPiraniaRoundTrip: whatever we make comes back from pirania's form as it was.
func TestPiraniaRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		when := func(name string) time.Time {
			return fromUnix(rapid.Int64Range(0, 4e9).Draw(rt, name))
		}
		v := Voucher{ID: rapid.StringMatching(`[A-Z]{6}`).Draw(rt, "id"), Name: rapid.String().Draw(rt, "name"), Code: rapid.StringMatching(`[A-Z]{6}`).Draw(rt, "code"),
			Minutes: rapid.Int64Range(0, maxMinutes).Draw(rt, "minutes"), Bytes: rapid.Uint64().Draw(rt, "bytes"), Used: rapid.Uint64().Draw(rt, "used"),
			Devices: rapid.IntRange(1, 64).Draw(rt, "devices"), Created: time.Unix(rapid.Int64Range(1, 4e9).Draw(rt, "created"), 0).UTC(), Deadline: when("deadline"), Revoked: when("revoked"),
			Changes: rapid.Int64Range(1, 100).Draw(rt, "changes"), FromCreation: rapid.Bool().Draw(rt, "from"), Note: rapid.String().Draw(rt, "note")}
		for range rapid.IntRange(0, 3).Draw(rt, "macs") {
			v.MACs = append(v.MACs, MAC(rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(rt, "mac")))
		}
		if len(v.MACs) > 0 {
			v.Activated = time.Unix(rapid.Int64Range(1, 4e9).Draw(rt, "activated"), 0).UTC()
		}
		b, err := json.Marshal(v.Pirania())
		if err != nil {
			rt.Fatal(err)
		}
		ps, err := ParsePirania(bytes.NewReader(b))
		if err != nil || len(ps) != 1 {
			rt.Fatal(err, len(ps))
		}
		got, err := ps[0].voucher()
		if err != nil {
			rt.Fatal(err)
		}
		v.Name, v.Note = strings.ToValidUTF8(v.Name, "\uFFFD"), strings.ToValidUTF8(v.Note, "\uFFFD")
		if d := cmp.Diff(v, got); d != "" {
			rt.Fatal(d)
		}
	})
}

func FuzzPirania(f *testing.F) {
	f.Add([]byte(piraniaFiles))
	f.Add([]byte(`[{"vouchers":{"a":{"code":"x"}}}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		ps, err := ParsePirania(bytes.NewReader(b))
		if err != nil {
			return
		}
		s := &Vouchers{path: filepath.Join(t.TempDir(), "v"), now: time.Now}
		if n, err := s.Import(ps); err == nil && n > 0 {
			if err := checkAll(s.List()); err != nil {
				t.Fatal(err)
			}
			if _, err := OpenVouchers(s.path, nil); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func FuzzStore(f *testing.F) {
	f.Add([]byte(`{"version":1,"vouchers":[{"id":"a","code":"X","devices":1,"created":"2026-01-01T00:00:00Z","macs":["02:00:00:00:00:01"]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := decodeStore(b)
		if err != nil {
			return
		}
		c, err := json.Marshal(storeFile{1, all})
		if err != nil {
			return // years that JSON cannot write
		}
		again, err := decodeStore(c)
		if err != nil {
			t.Fatal(err)
		}
		if d, err := json.Marshal(storeFile{1, again}); err != nil || !bytes.Equal(c, d) {
			t.Fatalf("%v\n%s\n%s", err, c, d)
		}
	})
}
