int lvp_coordinator_placeholder(void); int lvp_coordinator_placeholder(void) { return 0; }
