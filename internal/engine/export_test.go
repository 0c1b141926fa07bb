package engine

// Bugs are the mistakes that can be planted, by name.
var Bugs = map[string]bug{
	"the fence is read at commit":                  bugLateFence,
	"offsets are left out of the transaction":      bugOffsetsLeftOut,
	"unchanged offsets are left out":               bugUnchangedLeftOut,
	"commit after a failed produce":                bugFailedProduce,
	"outputs are written twice after an abort":     bugEmitTwice,
	"rows and cache are kept on abort":             bugCacheKept,
	"the restore skips the tail":                   bugRestoreShort,
	"the restore ends at the last stable offset":   bugRestoreStable,
	"rows are written before the commit":           bugAppliedFirst,
	"the loop is not rewound":                      bugLoopNotRewound,
	"calls are dispatched before the commit":       bugDispatchedFirst,
	"offsets move before the records are done":     bugOffsetsAhead,
	"a new member id goes on at the old positions": bugOldPositions,
}

// Plant plants a bug.
func Plant(cfg *Config, b bug) { cfg.planted = b }
