// Prints what chokidar hears below a directory, one line each. NODE_PATH says where it is.
const chokidar = require('chokidar');
const watcher = chokidar.watch(process.argv[2], { ignoreInitial: true, atomic: false });
watcher.on('all', (event, path) => console.log(event, path));
watcher.on('error', (err) => console.log('error', err.message));
watcher.on('ready', () => console.log('ready'));
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
