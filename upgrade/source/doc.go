// Package source says where plans and heights come from: the node's files, its RPC and gRPC, its log lines, the chain.
//
// It only observes. Each source answers with a plain value or says why it can't, and never with a default: an unknown
// height is an error, not zero, because a height decides whether a binary is exchanged. What the observations together
// mean is decided in package upgrade.
//
//   - Watcher tells when a file should be looked at again.
//   - Heights reads the node's height, from the first source that answers.
//   - Lines picks announcements and heights out of the node's own output.
//   - CurrentPlan asks the chain for the plan that governance passed.
//   - SignerHeight reads what the validator last signed, Recorder remembers the last height across restarts.
package source
