//go:build race && !no_ygg

package ygg

const raceDetector = true
