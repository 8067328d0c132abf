// "shard-{0000..0099}.tar" to its names, as WebDataset and bash expand it.
#ifndef LVP_COORDINATOR_SHARD_PATTERN_H
#define LVP_COORDINATOR_SHARD_PATTERN_H

#include "coordinator/input/name_list.h"

enum { LVP_MAX_SHARDS = 1 << 20 };

// Appends the names; a text without braces is one name. Several ranges are all combined, the last one running fastest.
// Numbers are padded with zeros to the longer bound where a bound begins with 0. LVP_ERR_USAGE for a range that is
// none.
enum lvp_status lvp_shard_pattern_expand(const char *pattern, struct lvp_name_list *names) LVP_MUST_CHECK;

#endif
