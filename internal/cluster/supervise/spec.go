package supervise

import "time"

// DefaultStopTimeout is how long a process may take to end after SIGTERM, unless it says otherwise.
const DefaultStopTimeout = 10 * time.Second

// Spec is what a supervisor runs. It is kept in DIR/spec.json.
type Spec struct {
	// Name is for people who read logs.
	Name string `json:"name"`
	// NetNS is the path of the network namespace that the supervisor and its children run in; empty: the caller's.
	NetNS string `json:"netns,omitempty"`
	// Cgroup is the path, below the root of every hierarchy, of the cgroup of the supervisor and its children; empty: the
	// caller's. It is made if it isn't there. Whoever named it removes it.
	Cgroup string `json:"cgroup,omitempty"`
	// Env is the environment of all processes, as KEY=value. Of the caller's own environment they get PATH and HOME, unless
	// they are here.
	Env []string `json:"env,omitempty"`
	// Processes are kept running. Their names are unique.
	Processes []Process `json:"processes"`
}

// Process is one process that a supervisor keeps running.
type Process struct {
	Name string `json:"name"`
	// Args is the command line. Its first is the absolute path of the program.
	Args []string `json:"args"`
	// Env is added to the Spec's.
	Env []string `json:"env,omitempty"`
	// Log is the absolute path of the file that its output is appended to. When it gets long, it is moved to Log.1.
	Log string `json:"log"`
	// Ready says how to find out whether it does its work; nil: it does when it runs.
	Ready *Probe `json:"ready,omitempty"`
	// After names the processes that must be ready before it is started for the first time, and that are stopped after it.
	After []string `json:"after,omitempty"`
	// StopTimeout is how long it may take to end after SIGTERM; 0: DefaultStopTimeout. It is kept in nanoseconds.
	StopTimeout time.Duration `json:"stopTimeout,omitempty"`
}

// Probe asks a process whether it is ready.
type Probe struct {
	// URL is https://…, http://… (ready if it answers with a status 200 to 299), tcp://address:port or unix:///path (ready if
	// it can be connected to).
	URL string `json:"url"`
	// CA is a PEM file with the certificates that an https server's is checked against; empty: the system's.
	CA string `json:"ca,omitempty"`
}
