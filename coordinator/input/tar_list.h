// The samples of one tar shard in WebDataset's sense, found by reading its headers only (libarchive, which seeks over
// the rest). Members that follow each other and share a key belong to one sample; the key is a member's path up to the
// first dot of its base name, the extension what follows that dot. Members without a dot, hidden ones and anything but
// regular files (links too) are nobody's, as in WebDataset.
//
// A sample's image is its member with extension jpg, jpeg, png or webp; where there is none, the only one whose
// extension ends so ("key.left.jpg"). Its columns are the members json and txt.
//
// A stretch without readable headers is skipped to the next one that is, and becomes a sample of its own that is an
// error. The samples on both sides of it are errors too: some of their members may lie in there, and an image with
// another's prompt, or a mask in its place, would be a wrong caption. Thread: any, one per list.
#ifndef LVP_COORDINATOR_TAR_LIST_H
#define LVP_COORDINATOR_TAR_LIST_H

#include "coordinator/input/name_list.h"

enum lvp_tar_fault {
    LVP_TAR_OK,
    LVP_TAR_NO_IMAGE,
    LVP_TAR_MANY_IMAGES, // none named exactly, several with dotted extensions
    LVP_TAR_SPARSE,      // stored with holes: its bytes are no plain range
    LVP_TAR_TRUNCATED,   // the shard ends before the image does
    LVP_TAR_BESIDE_DAMAGE,
    LVP_TAR_CUT_OFF, // not a sample: the shard ends without its end mark
    LVP_TAR_DAMAGED  // not a sample: the shard cannot be read from `image_offset` on
};

struct lvp_tar_sample {
    uint64_t image_offset, image_bytes;
    uint64_t json_offset, text_offset;
    uint32_t json_bytes, text_bytes; // 0: there is none; UINT32_MAX: that many or more
    enum lvp_tar_fault fault;
};

struct lvp_tar_list {
    char *path;                     // owned
    uint64_t n_bytes;               // size of the shard
    int64_t time;                   // when it was changed last (lvp_file_time)
    struct lvp_name_list names;     // [n] path of the image's member, of the first one where there is no image
    struct lvp_tar_sample *samples; // [n]
    size_t n, max;
    bool damaged; // some stretch could not be read
};

// Lists `list->path`. LVP_ERR_USAGE when it cannot be opened, is compressed, or, without any damage, has one member of
// a key twice.
enum lvp_status lvp_tar_list_read(struct lvp_tar_list *list) LVP_MUST_CHECK;
void lvp_tar_list_free(struct lvp_tar_list *list);

// Length of the key at the start of a member's path; 0 for a member that belongs to no sample.
size_t lvp_tar_key_length(const char *path);

#endif
