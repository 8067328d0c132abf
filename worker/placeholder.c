int lvp_worker_placeholder(void);
int lvp_worker_placeholder(void) { return 0; }
