// Package guest is the protocol between the sandbox on the host and the agent in the pod VM, generated from guest.proto.
package guest

// Version is the highest protocol version this code speaks; guest.proto has the history.
const Version = 1

//go:generate sh -c "PATH=$(pwd)/../../bin:$PATH protoc --go_out=. --go_opt=paths=source_relative --go-ttrpc_out=. --go-ttrpc_opt=paths=source_relative guest.proto"
