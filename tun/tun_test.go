package tun

import (
	"testing"

	"pgregory.net/rapid"
)

// RFC 1071's definition, word by word.
func TestSumAgainstOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "b")
		init := rapid.Uint16().Draw(t, "init")
		var sum uint32 = uint32(init)
		for i := 0; i < len(b); i += 2 {
			w := uint32(b[i]) << 8
			if i+1 < len(b) {
				w |= uint32(b[i+1])
			}
			if sum += w; sum > 0xffff {
				sum = sum&0xffff + 1
			}
		}
		if got := Sum(b, init); got != uint16(sum) {
			t.Fatalf("%#x, want %#x", got, sum)
		}
	})
}
