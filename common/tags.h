// Every message tag. Control messages use their own communicator, hops another, so that neither waits behind the other.
#ifndef LVP_COMMON_TAGS_H
#define LVP_COMMON_TAGS_H

enum lvp_tag {
    LVP_TAG_CONTROL = 1,     // protobuf, both directions, with rank 0
    LVP_TAG_STEP_HEAD = 2,   // hop header and positions of a step
    LVP_TAG_STEP_BODY = 3,   // activations of a step
    LVP_TAG_ENCODE_HEAD = 4, // hop header of an encode job
    LVP_TAG_ENCODE_BODY = 5, // activations of an encode job
    LVP_TAG_PROBE = 6,       // measuring a link
    // Plus a body's tag: its receiver tells the sender that it is ready, and the unique id of their channel between
    // GPUs.
    LVP_TAG_NCCL_INVITATION = 16,
};

#endif
