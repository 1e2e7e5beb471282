package config

import (
	"strings"
	"testing"
)

func TestRates(t *testing.T) {
	for s, want := range map[string]Rate{
		"20 Mbit/s": 20e6, "20M": 20e6, "512 kbit/s": 512e3, "1.5 Gbit/s": 15e8, "0": 0, "64000": 64000, "10Mbps": 10e6, " 8k ": 8000,
	} {
		got, err := ParseRate(s)
		if err != nil || got != want {
			t.Errorf("%q is %d, %v; want %d", s, got, err, want)
		}
		if back, err := ParseRate(got.String()); err != nil || back != got {
			t.Errorf("%q printed as %q, read back as %d, %v", s, got, back, err)
		}
	}
	for _, s := range []string{"", "fast", "-1M", "NaN", "Inf", "1e30G", "20 MB/s", "100"} {
		if got, err := ParseRate(s); err == nil {
			t.Errorf("%q was read as %d", s, got)
		}
	}
}

func TestPrices(t *testing.T) {
	for s, want := range map[string]uint32{"0": 0, "100000": 100000, "0.10/GB": 104858, "1 /GB": 1048576} {
		if got, err := ParsePrice(s); err != nil || got != want {
			t.Errorf("%q is %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "-1", "cheap", "5000000000", "1e9/GB", "NaN/GB", "0.1"} {
		if got, err := ParsePrice(s); err == nil {
			t.Errorf("%q was read as %d", s, got)
		}
	}
	for p, want := range map[uint64]string{0: "free", 104858: "0.10 credits/GB", 100000: "0.0954 credits/GB", 1048576: "1.00 credits/GB", 1: "0.000001 credits/GB"} {
		if got := FormatPrice(p); got != want {
			t.Errorf("%d ncredit per MiB is %q, want %q", p, got, want)
		}
	}
}

func TestSharingIsChecked(t *testing.T) {
	_, err := Parse("weft.toml", []byte(`
[gateway]
offer = true
ipv4 = false
ipv6 = "off"
down = "fast"
`))
	if err == nil || !strings.Contains(err.Error(), "20 Mbit/s") {
		t.Errorf("a wrong rate: %v", err)
	}
	_, err = Parse("weft.toml", []byte(`
[gateway]
offer = true
ipv4 = false
ipv6 = "off"
log_days = -1
use = ""
[dns]
listen = "0.0.0.0:53"
[guest]
network = "8.8.8.8/24"
mode = "free"
[[rate]]
interface = "wlan*"
`))
	for _, want := range []string{"gateway.offer", "gateway.log_days", "gateway.use", "dns.listen", "guest.network", "guest.mode", "rate[1]"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not complained of: %v", want, err)
		}
	}
}

func TestNumbersOfSharing(t *testing.T) {
	c, err := Parse("weft.toml", []byte("[gateway]\noffer = true\nprice = \"0.10/GB\"\nmax_price = 200000\ndown = \"40M\"\n"))
	if err != nil || c.Gateway.Price != 104858 || c.Gateway.MaxPrice != 200000 || c.Gateway.Down != 40e6 {
		t.Errorf("%+v, %v", c, err)
	}
	for text, want := range map[string]string{
		"[gateway]\nprice = \"cheap\"":                 "weft.toml:2: gateway.price: \"cheap\" is no price; written like 0.10/GB",
		"[gateway]\nprice = -5":                        "gateway.price: must be",
		"[gateway]\nmax_price = 0.1":                   "\"0.1\" is no price; written like 0.10/GB",
		"[gateway]\ndown = 40":                         "gateway.down: 40 bit/s is too little to share",
		"[[rate]]\ninterface = \"wlan*\"\nrate = 30":   "rate[1].rate: 30 bit/s is too little",
		"[gateway]\noffer = true\nmembers_only = true": "gateway.members_only: this node is in the open network",
		"[dns]\nlisten = \"0.0.0.0:53\"":               "this resolver is for this device alone",
	} {
		if _, err := Parse("weft.toml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is met with %v, want %q", text, err, want)
		}
	}
}

func TestLastSaidHolds(t *testing.T) {
	c := Default()
	c.Gateway.Offer, c.Gateway.Price = true, 7
	c.Add(Added{Gateway: &Sharing{Use: "auto", Offer: &Offer{On: false, IPv4: true, IPv6: "nat"}}})
	if c.Gateway.Use != "auto" || c.Gateway.Offer || c.Gateway.Price != 0 {
		t.Errorf("%+v", c.Gateway)
	}
}
