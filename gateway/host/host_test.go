package host

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

func TestFreePool(t *testing.T) {
	pfx := netip.MustParsePrefix
	all := []netip.Prefix{pfx("0.0.0.0/0"), pfx("192.168.0.0/16")}
	for _, c := range []struct {
		preferred netip.Prefix
		taken     []netip.Prefix
		want      string
	}{
		{pfx("100.77.0.0/16"), all, "100.77.0.0/16"},
		{pfx("100.77.3.4/16"), all, "100.77.0.0/16"},
		{pfx("100.77.0.0/16"), append(all, pfx("100.77.8.9/32")), "100.64.0.0/16"},
		{pfx("100.77.0.0/16"), append(all, pfx("100.64.0.0/11")), "100.96.0.0/16"},
		{pfx("100.200.0.0/16"), all, "100.64.0.0/16"},
		{pfx("100.77.0.0/17"), all, "100.64.0.0/16"},
		{netip.Prefix{}, append(all, pfx("100.64.0.0/24"), pfx("::/0"), pfx("200::/7")), "100.65.0.0/16"},
		{pfx("100.77.0.0/16"), append(all, pfx("100.0.0.0/8")), "invalid Prefix"},
	} {
		if got := FreePool(c.preferred, c.taken); got.String() != c.want {
			t.Errorf("FreePool(%v, %v) = %v, want %s", c.preferred, c.taken, got, c.want)
		}
	}
}

func TestFreePoolOverlapsNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		taken := rapid.SliceOfN(prefixes(false), 0, 40).Draw(t, "taken")
		got := FreePool(prefixes(false).Draw(t, "preferred"), taken)
		if !got.IsValid() {
			for second := 64; second < 128; second++ {
				free := true
				for _, p := range taken {
					free = free && (p.Bits() == 0 || !p.Overlaps(netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(second)}), 16)))
				}
				if free {
					t.Fatalf("100.%d.0.0/16 was free", second)
				}
			}
			return
		}
		for _, p := range taken {
			if p.Bits() > 0 && p.Overlaps(got) {
				t.Fatalf("%v overlaps %v", got, p)
			}
		}
		if got.Bits() != 16 || !cgnat.Contains(got.Addr()) {
			t.Fatal(got)
		}
	})
}

// prefixes draws networks that often meet: around 100.64.0.0/10, and around the beginning and end of IPv6.
func prefixes(v6 bool) *rapid.Generator[netip.Prefix] {
	return rapid.Custom(func(t *rapid.T) netip.Prefix {
		if v6 {
			a := [16]byte{0: rapid.SampledFrom([]byte{0, 0x20, 0xfe, 0xff}).Draw(t, "first"), 1: rapid.Byte().Draw(t, "second"), 15: rapid.Byte().Draw(t, "last")}
			return netip.PrefixFrom(netip.AddrFrom16(a), rapid.IntRange(0, 128).Draw(t, "bits")).Masked()
		}
		a := [4]byte{rapid.SampledFrom([]byte{100, 100, 10, 255, 0}).Draw(t, "first"), rapid.Byte().Draw(t, "second"), rapid.Byte().Draw(t, "third"), rapid.Byte().Draw(t, "last")}
		return netip.PrefixFrom(netip.AddrFrom4(a), rapid.IntRange(0, 32).Draw(t, "bits")).Masked()
	})
}

func TestMerge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		in := rapid.SliceOfN(rapid.OneOf(prefixes(v6), prefixes(!v6)), 0, 30).Draw(t, "in")
		out := merge(in, v6)
		for i := 1; i < len(out); i++ {
			if out[i-1].Overlaps(out[i]) || !out[i-1].Addr().Less(out[i].Addr()) {
				t.Fatalf("%v and %v", out[i-1], out[i])
			}
		}
		probe := prefixes(v6).Draw(t, "probe").Addr()
		if got, want := within(out, probe), within(in, probe); got != want {
			t.Fatalf("%v: in %v %v, in %v %v", probe, in, want, out, got)
		}
	})
}

func within(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
