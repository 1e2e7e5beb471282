// Keeps the page up to date: the node sends the changing part anew when it has changed.
"use strict";
const live = document.getElementById("live");
const state = document.getElementById("state");
const source = new EventSource("/live");
source.onopen = () => { state.textContent = ""; };
source.onmessage = (e) => {
	// What someone has selected, to copy an address, must not go away under the mouse.
	if (String(document.getSelection())) return;
	const scroll = [...live.querySelectorAll(".scroll")].map((el) => el.scrollLeft);
	live.innerHTML = JSON.parse(e.data);
	live.querySelectorAll(".scroll").forEach((el, i) => { el.scrollLeft = scroll[i] || 0; });
};
source.onerror = () => { state.textContent = "The node does not answer; this is how it was last."; };
