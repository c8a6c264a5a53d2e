/// <reference types="vitest/config" />
import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig, type Plugin } from 'vite';
import { customProperties } from './src/lib/constants.ts';

// In the built style, not set by the script, so that the first paint already has the colours.
const colours: Plugin = {
  name: 'colours',
  enforce: 'pre',
  transform: (code, id) => (id.endsWith('/src/page.css') ? customProperties() + code : null),
};

// The page is package data of the Python package, and is served under whatever address the studio has.
export default defineConfig({
  base: './',
  plugins: [colours, svelte()],
  build: {
    outDir: '../vitrine/studio/page',
    emptyOutDir: true,
    target: 'es2022',
    assetsInlineLimit: 0, // the page's policy allows no inline script
    modulePreload: false, // a script that is loaded later is one file, and needs no other
  },
  test: { css: true, setupFiles: 'tests/setup.ts' }, // a test reads page.css
});
