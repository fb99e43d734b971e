// Package supervise keeps a list of processes running, with one supervisor process for each list.
package supervise
