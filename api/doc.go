// Package api is how people and programs talk to a running node: the types, the
// server and the client of one small HTTP interface over a unix socket.
//
// The node implements Backend; the server turns it into routes (openapi.json
// lists them) and Client turns the routes back into a Backend, so the command
// line, the portal and tests use one interface whether the node is in the same
// process or not. Errors are RFC 9457 problems with a stable Code and a Hint
// that says what to do next.
//
// cli, portal, node and lab may import api; api imports ident only. Everything
// here is safe for concurrent use. Serve returns when all its goroutines have
// ended; streams end when their context does, and iterating one holds no
// goroutine after the loop has ended.
package api
