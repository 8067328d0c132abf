// The header in front of every payload that crosses a cut: 64 bytes, little-endian, versioned, with a checksum of
// itself.
//
//   offset  size  field
//        0     4  magic "LVPH"
//        4     2  version (1)
//        6     2  kind: 1 step, 2 encode
//        8     8  number of the step or encode job
//       16     4  rows
//       20     4  width (elements of a row)
//       24     4  dtype (enum lvp_dtype)
//       28     4  sequences, or images of an encode job
//       32     8  payload bytes (rows x width x element size)
//       40     8  vision rows among the rows (steps)
//       48     8  reserved, zero
//       56     8  XXH3-64 of bytes 0..55
//
// A step's header is followed by int32 positions [rows] in the same message; the activations come in a message of their
// own. Where the rows of an image vary, its positions say how many there are: they lie where the image was.
#ifndef LVP_COMMON_WIRE_H
#define LVP_COMMON_WIRE_H

#include "common/dtype.h"
#include "common/status.h"

#include <stdbool.h>

enum { LVP_HOP_HEADER_BYTES = 64, LVP_HOP_VERSION = 1 };

enum lvp_hop_kind { LVP_HOP_STEP = 1, LVP_HOP_ENCODE = 2 };

struct lvp_hop_header {
    enum lvp_hop_kind kind;
    uint64_t number;
    uint32_t n_rows, width, n_parts;
    enum lvp_dtype dtype;
    uint64_t payload_bytes;
    uint64_t vision_rows;
};

void lvp_hop_header_pack(const struct lvp_hop_header *header, unsigned char bytes[LVP_HOP_HEADER_BYTES]);

// LVP_ERR_FORMAT naming the field for anything but a well-formed header of this version.
enum lvp_status lvp_hop_header_unpack(const void *bytes, size_t n_bytes, struct lvp_hop_header *header) LVP_MUST_CHECK;

// Whether what arrived is what was announced; LVP_ERR_FORMAT naming the first field that differs. vision_rows_vary:
// images may have fewer rows than announced, text may not.
enum lvp_status lvp_hop_header_expect(const struct lvp_hop_header *arrived, const struct lvp_hop_header *announced,
                                      bool vision_rows_vary) LVP_MUST_CHECK;

#endif
